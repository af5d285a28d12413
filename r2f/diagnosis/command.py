"""``r2f diagnose``: from settings to a device's map of permanent faults, over the bus."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from accelsim import accelerators, datasets, faults
from accelsim.faults import chip
from accelsim.named import looking_in
from accelsim.timing import Array
from r2f import pipeline, prepare, run
from r2f import settings as settings_file
from r2f.devices.choosing import are_several
from r2f.diagnosis.ask import VECTORS
from r2f.diagnosis.drive import over_the_bus
from r2f.diagnosis.find import Found, Progress
from r2f.diagnosis.probes import FILTERS, Tile, probe
from r2f.display import Display
from r2f.errors import first
from r2f.memory import Shares, shares
from r2f.settings import Settings, SettingsError
from services.bus import Bus
from services.trainer.table1 import serving

READY_S = 60.0
ARENA_BYTES = 64 << 20


def diagnose(settings: Settings, out: Path, repeat: int | None, say: Display) -> Found:
    """Find the permanent faults of a device, and leave them as a chip file.

    The device's services are started unless the settings name a broker where they run. Raises ValueError for settings that do
    not fit, PipelineError and BusError for what fails.
    """
    settings = settings_file.resolved(settings)
    prepare.check_files(settings)
    if settings.broker is not None:
        prepare.reach(settings.broker)
    if not out.absolute().parent.is_dir():
        raise SettingsError(f"--out {out}: no such folder: {out.absolute().parent}")
    if are_several(settings):
        raise SettingsError(f"--device {settings.device}: a diagnosis is of one device; name it")
    if out.exists():
        raise SettingsError(f"--out {out}: is there already, and may be a chip of yours; give another name or move it away")
    array = prepare.array_of(settings)
    if max(array.rows, array.columns) > chip.SIDE:
        raise SettingsError(f"--array {settings.array}: chip files have at most {chip.SIDE} rows and columns")
    with looking_in(settings.modules):
        accelerators.build(settings.accelerator, faults.build(settings.fault_model), prepare.permanent(settings))
    try:
        with say.counting(f"diagnosing {array.rows}x{array.columns} elements, columns explained", every=True) as tell:
            told = partial(_tell, tell)
            found = asyncio.run(run.until_sigterm(_over_the_bus(settings, array, repeat, say, told)))
    except BaseExceptionGroup as group:
        raise first(group) from group
    chip.write(out, found.faults)
    return found


def _tell(tell: Callable[[int, int | None, str], None], made: Progress) -> None:
    tell(made.explained, made.columns, f"round {made.round}, {made.vectors} vectors sent")


async def _over_the_bus(
    settings: Settings, array: Array, repeat: int | None, say: Display, watch: Callable[[Progress], None]
) -> Found:
    programs, device_broker, server_broker = run.broker_programs(settings)
    if settings.launch:
        programs += run.service_programs(settings, _memory(settings, array), device_broker, server_broker)
    with tempfile.TemporaryDirectory(prefix="r2f-diagnose-") as logs:
        async with (
            pipeline.running(programs, Path(logs), say.restarted),
            Bus(server_broker, "trainer", settings.device, arena_bytes=ARENA_BYTES, readers=("codec-server",)) as bus,
            serving(bus, f"diagnose-{secrets.token_hex(6)}") as server,
        ):
            await server.ready(settings.device, READY_S)
            return await over_the_bus(
                server, settings.device, array, settings.rates, seed=settings.seed, repeat=repeat, watch=watch
            )


def _memory(settings: Settings, array: Array) -> Shares:
    """Of the device, for the largest of the probes' answers. Raises ValueError where they do not fit."""
    tile = Tile(np.zeros((array.rows, array.columns), np.int8), 0, np.zeros(array.columns, np.int64))
    none = np.zeros((1, array.rows), np.int64)
    largest = probe(array, [tile] * max(1, FILTERS // array.columns), none, none).network
    data = datasets.open(settings.data)
    return shares(
        settings.device_memory_mb, largest, min(VECTORS, array.rows), data.train_images.nbytes + data.test_images.nbytes
    )


def table(found: Found) -> Table:
    """What was found, for people."""
    kinds = Counter(fault.kind for fault in found.faults.faults)
    size = found.faults.array.rows * found.faults.array.columns
    places = len({(fault.row, fault.column) for fault in found.faults.faults})
    made = Table(show_header=False, box=None, pad_edge=False)
    made.add_row("faulty elements", f"{places} of {size} ({100 * places / size:.2f} %)")
    made.add_row(
        "stuck bits", f"{kinds['weight']} of weights, {kinds['accumulator']} of accumulators; {kinds['bypass']} bypassed"
    )
    odd = ", ".join(map(str, found.unexplained))
    made.add_row("columns not explained in full", odd or "none")
    made.add_row("asked", f"{found.vectors} vectors in {found.passes} networks, {found.answers} answers")
    made.add_row("digest", chip.digest(found.faults))
    return made
