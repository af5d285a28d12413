"""What a run came to: ``report.json``, and the table that the user reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from services.bus.messages import Codec, FaultRates
from services.trainer import job, ledger, training

FILE = "report.json"
STAGES = ("forward", "tmr", "increment", "compress", "uplink", "decompress", "backward", "quantise", "downlink")
"""In the order of one iteration (the paper's Fig. 6)."""


class Spread(msgspec.Struct, kw_only=True, frozen=True):
    """Mean and standard deviation (of the population) over ``values``, top-1 in per cent."""

    mean: float
    std: float
    values: tuple[float, ...] = ()


class Accuracy(msgspec.Struct, kw_only=True, frozen=True, rename={"float_": "float"}):
    """Top-1 on images held out from training; the faulty ones over several fault seeds."""

    float_: Spread | None
    """None where the float network was not measured."""
    int8: Spread
    faulty_before: Spread
    faulty_after: Spread


class Uplink(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes from the device, all iterations: int8 outputs and uint8 images as they are, and what was really sent."""

    direct: int
    sent: int
    direct_layers: int
    """Of ``direct``: the intermediate outputs."""
    sent_layers: int
    """Of ``sent``: their increments, digests and framing."""


class Downlink(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes to the device, all iterations: whole models, and what was really sent."""

    full: int
    sent: int


class StageTime(msgspec.Struct, kw_only=True, frozen=True):
    """Mean seconds an iteration. ``device`` is modelled accelerator time, ``link`` bytes by the link profile's rate."""

    host: float
    device: float = 0.0
    link: float = 0.0


class Fidelity(msgspec.Struct, kw_only=True, frozen=True):
    """Elements of the intermediate outputs, and how many the server had wrong (in layers whose digest told)."""

    elements: int
    mismatched: int
    mismatched_layers: int = 0


class Report(msgspec.Struct, kw_only=True, frozen=True):
    """``report.json``."""

    network: str
    ber: float
    """The largest of the rates at the sites; ``rates`` has them all."""
    rates: FaultRates
    codec: Codec
    link: str
    iterations: int
    batch: int
    accuracy: Accuracy
    uplink_bytes: Uplink
    downlink_bytes: Downlink
    stages_s: dict[str, StageTime]
    iteration_s: float
    """Mean wall time of an iteration: the stages overlap."""
    fidelity: Fidelity
    loss: tuple[float, ...]
    """Of each iteration, on the device's own outputs."""
    model_sha256: str


class Link(msgspec.Struct, kw_only=True, frozen=True):
    """A link as a clock (Table II): rates in bit/s, infinity for none, latency in seconds a message."""

    name: str
    uplink: float
    downlink: float
    latency: float = 0.0


class ReportError(ValueError):
    """The run's folder does not hold a finished run; the message says what is missing."""


def collect(folder: Path, *, network: str, link: Link, float_accuracy: float | None = None) -> Report:
    """The report of a finished run, from the files that the trainer left in its folder.

    ``network`` is the name to report it under; ``float_accuracy`` the float network's top-1 in per cent, if measured.
    Raises ReportError if the run is not finished.
    """
    todo = job.read(folder)
    result_file = folder / training.RESULT
    if not result_file.exists():
        raise ReportError(f"{result_file}: missing; the run has not got that far, resume it with --resume {folder}")
    result = msgspec.json.decode(result_file.read_bytes(), type=training.Result)
    rows = ledger.read(folder / training.PROGRESS)
    if not result.after or len(rows) != todo.iterations:
        raise ReportError(
            f"{folder}: {len(rows)} of {todo.iterations} iterations are done"
            f"{'' if result.after else ', and the evaluation after them is missing'}; resume with --resume {folder}"
        )
    rates = todo.rates
    layers = sum(row.elements for row in rows)
    return Report(
        network=network,
        ber=max(rates.input, rates.weight, rates.accumulator, rates.output),
        rates=rates,
        codec=todo.codec,
        link=link.name,
        iterations=todo.iterations,
        batch=todo.batch,
        accuracy=Accuracy(
            float_=None if float_accuracy is None else spread([float_accuracy]),
            int8=spread(result.int8),
            faulty_before=spread(result.before),
            faulty_after=spread(result.after),
        ),
        uplink_bytes=Uplink(
            direct=layers + sum(row.input_bytes for row in rows),
            sent=sum(row.uplink_layers + row.uplink_inputs for row in rows),
            direct_layers=layers,
            sent_layers=sum(row.uplink_layers for row in rows),
        ),
        downlink_bytes=Downlink(
            full=sum(row.downlink_full for row in rows) or len(rows) * (folder / job.NETWORK).stat().st_size,
            sent=sum(row.downlink for row in rows),
        ),
        stages_s=_stages(rows, link),
        iteration_s=fmean(row.wall_s for row in rows),
        fidelity=Fidelity(
            elements=layers,
            mismatched=sum(row.mismatched for row in rows),
            mismatched_layers=sum(row.mismatched_layers for row in rows),
        ),
        loss=tuple(row.loss for row in rows),
        model_sha256=result.model_sha256,
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and population standard deviation of one or more values."""
    return Spread(mean=fmean(values), std=pstdev(values), values=tuple(values))


def _stages(rows: Sequence[ledger.Row], link: Link) -> dict[str, StageTime]:
    n = len(rows)
    times = {}
    for stage in STAGES:
        host = sum(row.host_s.get(stage, 0.0) for row in rows) / n
        device = sum(row.device_s.get(stage, 0.0) for row in rows) / n
        on_link = 0.0
        if stage == "uplink":
            on_link = 8 * sum(row.uplink_layers + row.uplink_inputs for row in rows) / n / link.uplink + link.latency
        elif stage == "downlink":
            on_link = 8 * sum(row.downlink for row in rows) / n / link.downlink + link.latency
        if host or device or on_link:
            times[stage] = StageTime(host=host, device=device, link=on_link)
    return times


def write(folder: Path, report: Report) -> Path:
    """Writes ``report.json`` into the folder; returns its path."""
    path = folder / FILE
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return path


def read(folder: Path) -> Report:
    """The report in a folder. Raises ReportError, which names the file."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise ReportError(f"{path}: {error}") from error


def table(report: Report) -> Group:
    """The report for a terminal."""
    return Group(Text(), _title(report), Text(), _accuracy(report), Text(), _traffic(report), Text(), _times(report))


def _title(report: Report) -> Text:
    return Text.assemble(
        (report.network, "bold"),
        f"  BER {report.ber:g}, {report.codec} over {report.link}, {report.iterations} iterations of {report.batch} images",
    )


def _accuracy(report: Report) -> Table:
    found = report.accuracy
    grid = _grid("Top-1 on held-out images", "mean", "std", "fault seeds")
    for name, value in (("float", found.float_), ("int8, no faults", found.int8)):
        if value is not None:
            grid.add_row(name, f"{value.mean:.1f} %", "", "")
    gain = found.faulty_after.mean - found.faulty_before.mean
    for name, value, style in (
        ("int8, faulty, before", found.faulty_before, "red"),
        (f"int8, faulty, after ({gain:+.1f})", found.faulty_after, "green" if gain > 0 else "red"),
    ):
        grid.add_row(name, f"[{style}]{value.mean:.1f} %[/]", f"{value.std:.1f}", str(len(value.values)))
    return grid


def _traffic(report: Report) -> Table:
    up, down = report.uplink_bytes, report.downlink_bytes
    grid = _grid("Bytes on the link", "plain", "sent", "share")
    for name, plain, sent in (
        ("uplink: all outputs and images", up.direct, up.sent),
        ("  of that, intermediate outputs", up.direct_layers, up.sent_layers),
        ("downlink: models", down.full, down.sent),
    ):
        grid.add_row(name, size(plain), size(sent), f"{100 * sent / plain:.1f} %" if plain else "")
    wrong = report.fidelity
    grid.add_row("rebuilt wrong, elements", size(wrong.elements, ""), size(wrong.mismatched, ""),
                 f"{100 * wrong.mismatched / wrong.elements:.4f} %" if wrong.elements else "")  # fmt: skip
    return grid


def _times(report: Report) -> Table:
    grid = _grid("Seconds an iteration", "host", "device (model)", "link (model)")
    for stage, time in report.stages_s.items():
        grid.add_row(stage, *(f"{value:.4f}" if value else "" for value in (time.host, time.device, time.link)))
    parts = [(time.host, time.device, time.link) for time in report.stages_s.values()]
    grid.add_section()
    grid.add_row("sum of the stages", *(f"{sum(column):.4f}" for column in zip(*parts, strict=True)))
    grid.add_row("wall clock, overlapped", f"{report.iteration_s:.4f}", "", "")
    return grid


def _grid(title: str, *columns: str) -> Table:
    grid = Table(title=None, box=None, pad_edge=False, header_style="dim")
    grid.add_column(title, min_width=34, style="default", header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right", min_width=10)
    return grid


def size(count: int, unit: str = "B") -> str:
    """A count with a decimal prefix: 1.23 MB."""
    value, prefix = float(count), ""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}".rstrip() if prefix else f"{count} {unit}".rstrip()
