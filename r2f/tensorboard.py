"""TensorBoard's event files of a run, from its folder: what ``tensorboard --logdir runs`` shows, while it runs and later."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from r2f.watch import need
from services.monitor.core import folder as folders
from services.monitor.core.curve import STAGES
from services.monitor.core.folder import Found
from services.trainer.core import fleet as fleets
from services.trainer.core import ledger, result
from services.trainer.core.ledger import Row

FOLDER = "tensorboard"
LOOK_S: Final = 2.0
"""Between two looks for what is new, at least; and ``SHARE`` times what a look takes, which grows with the run."""
SHARE: Final = 20


@dataclass(slots=True)
class _Board:
    """A device's event files, open, and what is in them."""

    writer: Any
    iteration: int = -1
    """The last one that is there."""
    scores: set[str] = field(default_factory=set)


def write(folder: Path) -> list[Path]:
    """Writes event files into ``FOLDER`` of each of a run's devices, in place of what is there; where they are.

    Scalars by iteration: loss and gradient norm, accuracy of the batch, bytes on the link and direct, seconds of each stage;
    and evaluations by fault seed. Raises ValueError for a folder that is no run, or where tensorboardX is not installed.
    """
    boards: dict[Path, _Board] = {}
    try:
        _add(folder, boards)
    finally:
        _close(boards)
    return list(boards)


async def follow(folder: Path, note: Callable[[str], None]) -> None:
    """Keeps the event files of a run that goes on up to date, until cancelled, and then once more.

    They are begun anew: a run that is resumed has its past from its folder. Where they cannot be written that is noted, and the
    run goes on without.
    """
    ended = threading.Event()
    working = asyncio.create_task(asyncio.to_thread(_follow, folder, ended))
    try:
        await asyncio.wait([working])
    finally:
        ended.set()
        try:
            await working
        except (OSError, ValueError) as error:
            note(f"no more event files for TensorBoard, the run goes on: {error}")


def _follow(folder: Path, ended: threading.Event) -> None:
    boards: dict[Path, _Board] = {}
    try:
        last = False
        while not last:
            last, begun = ended.is_set(), time.monotonic()
            _add(folder, boards)
            if not last:
                ended.wait(max(LOOK_S, SHARE * (time.monotonic() - begun)))
    finally:
        _close(boards)


def _close(boards: dict[Path, _Board]) -> None:
    for board in boards.values():
        board.writer.close()


def _add(folder: Path, boards: dict[Path, _Board]) -> None:
    """Adds what is new in a run's folder. Rows that a trainer does again after a crash say the same, and are there."""
    need({"tensorboardX": "tensorboardX"}, "--tensorboard", "tensorboard")
    found, fleet = folders.read(folder), fleets.read(folder)
    for one in found:
        of = folder if fleet is None else folder / one.device
        at = of / FOLDER
        if at not in boards:
            from tensorboardX import SummaryWriter

            if at.exists():
                shutil.rmtree(at)
            boards[at] = _Board(SummaryWriter(str(at), write_to_disk=True))
        board = boards[at]
        for row in ledger.read(of / result.PROGRESS):
            if row.iteration > board.iteration:
                _add_row(board.writer, row)
                board.iteration = row.iteration
        _add_scores(board, one)
        board.writer.flush()


def _add_row(writer: Any, row: Row) -> None:
    up = row.uplink_inputs + row.uplink_layers + row.uplink_repairs
    values = {
        "train/loss": row.loss, "train/gradient_norm": row.grad_norm, "train/accuracy_percent": row.accuracy,
        "link/up_bytes": up, "link/up_direct_bytes": row.elements + row.input_bytes, "link/down_bytes": row.downlink,
        "link/repair_bytes": row.uplink_repairs, "time/iteration_seconds": row.wall_s,
    }  # fmt: skip
    for stage in STAGES:
        for kind, seconds in (("host", row.host_s), ("device", row.device_s)):
            if stage in seconds:
                values[f"time_{kind}/{stage}_seconds"] = seconds[stage]
    for name, value in values.items():
        if value is not None:  # a network that gives images has no right answers in a batch
            writer.add_scalar(name, value, row.iteration)


def _add_scores(board: _Board, found: Found) -> None:
    """Evaluations, each once it is whole: of before at iteration 0, of after at the last one."""
    unit = "percent" if found.run.metric == "top1" else found.run.metric
    for score in found.run.scores:
        name = f"evaluation/{score.phase}_{'faulty' if score.faults else 'fault_free'}_{unit}"
        known = [value for value in score.values if value is not None]
        if name in board.scores or not known:
            continue
        board.scores.add(name)
        for seed, value in enumerate(known):
            board.writer.add_scalar(f"{name}_by_seed", value, seed)
        board.writer.add_scalar(name, fmean(known), found.run.done if score.phase == "after" else 0)
