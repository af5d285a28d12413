"""What a run of several devices came to: ``report.json`` in its folder, and a table with a line a device."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Literal

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from accelsim.faults import Rates
from broker.link import Profile
from r2f import report
from r2f.prepare import Prepared
from services.metric import Metric, written
from services.scheme import Codec
from services.trainer import waiting
from services.trainer.core import job as jobs
from services.trainer.core import ledger
from services.trainer.core import result as results
from services.trainer.core.fleet import Fleet
from services.trainer.core.task import Sharing


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """One device. ``before`` and ``after`` are the mean metric of the faulty device; None where the run did not get so far."""

    device: str
    state: Literal["done", "given up"]
    why: str = ""
    before: float | None = None
    after: float | None = None
    verdict: report.Verdict | None = None
    deployed: str = ""
    """Of the candidates that were tried; empty where nothing was."""
    iterations: int = 0
    """That the device took part in."""
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    iteration_s: float | None = None
    """Mean wall time of an iteration."""
    model_sha256: str = ""


class FleetReport(msgspec.Struct, kw_only=True, frozen=True):
    """``report.json`` of a run of several devices."""

    folder: str
    network: str
    sharing: Sharing
    rates: Rates
    codec: Codec
    batch: int
    metric: Metric = "top1"
    """Of the devices' ``before`` and ``after``."""
    devices: tuple[Row, ...]

    @property
    def given_up(self) -> list[Row]:
        """The devices that did not get to the end."""
        return [row for row in self.devices if row.state == "given up"]


def collect(folder: Path, fleet: Fleet, *, network: str, link: Profile | None, prepared: Prepared) -> FleetReport:
    """The report of a finished run of several devices, from the files that the trainer left; each device with a model of its
    own that is done gets its ``report.json`` too. Raises ReportError where the run is not finished."""
    todo = jobs.read(folder)
    rows = []
    for device in _devices(folder, fleet):
        row = _row(folder / device, device, todo.metric or "top1")
        if fleet.sharing == "own" and row.state == "done":
            found = report.collect(folder / device, network=network, link=link, prepared=prepared)
            report.write(folder / device, found)
        rows.append(row)
    return FleetReport(
        folder=str(folder.absolute()),
        network=network,
        sharing=fleet.sharing,
        rates=todo.rates,
        codec=todo.scheme.codec,
        metric=todo.metric or "top1",
        batch=todo.batch,
        devices=tuple(rows),
    )


def _devices(folder: Path, fleet: Fleet) -> list[str]:
    """Those that the run began with, and those that joined it."""
    joined = {path.parent.name for path in folder.glob(f"*/{results.FILE}")}
    return sorted(joined | set(fleet.devices))


def _row(folder: Path, device: str, metric: Metric) -> Row:
    outcome, found = waiting.outcome(folder), results.read(folder)
    if outcome is None:
        raise report.ReportError(f"{folder}: this device is not done; go on with --resume {folder.parent}")
    rows = ledger.read(folder / results.PROGRESS)
    before, after = found.faulty_before, found.faulty_after
    return Row(
        device=device,
        state="given up" if outcome else "done",
        why=outcome,
        before=None if before is None else fmean(before.of(metric)),
        after=None if after is None else fmean(after.of(metric)),
        verdict=None if before is None or after is None else report.judged(metric, before, after),
        deployed="" if found.selection is None else found.selection.deployed,
        iterations=len(rows),
        uplink_bytes=sum(row.uplink_layers + row.uplink_inputs + row.uplink_repairs for row in rows),
        downlink_bytes=sum(row.downlink for row in rows),
        iteration_s=fmean(row.wall_s for row in rows) if rows else None,
        model_sha256=found.model_sha256,
    )


def write(folder: Path, found: FleetReport) -> Path:
    """Writes ``report.json`` into the run's folder; returns its path."""
    path = folder / report.FILE
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return path


def read(folder: Path) -> FleetReport:
    """The report in a folder. Raises ReportError, which names the file."""
    path = folder / report.FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=FleetReport)
    except (OSError, msgspec.MsgspecError) as error:
        raise report.ReportError(f"{path}: {error}") from error


def table(found: FleetReport) -> Group:
    """The report for a terminal: a line a device."""
    what = "one model for all" if found.sharing == "common" else "a model each"
    rate = max(found.rates.input, found.rates.weight, found.rates.accumulator, found.rates.output)
    title = Text.assemble(
        (found.network, "bold"),
        f"  {len(found.devices)} devices, {what}, BER {rate:g}, {found.codec}, batches of {found.batch}",
    )
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("device", "before", "after", "", "done", "up", "down", "model"):
        grid.add_column(name, justify="left" if name in ("device", "", "model") else "right")
    for row in found.devices:
        grid.add_row(
            Text(row.device),
            *("" if value is None else written(found.metric, value) for value in (row.before, row.after)),
            "given up" if row.state == "given up" else row.verdict or "",
            str(row.iterations), report.size(row.uplink_bytes), report.size(row.downlink_bytes), row.model_sha256[:12],
        )  # fmt: skip
    reasons = [Text(f"{row.device}: {row.why}", style="red") for row in found.given_up]
    return Group(Text(), title, Text(), grid, *reasons)
