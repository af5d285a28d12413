"""A report for a terminal, in eighty columns."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from r2f.report import Accuracy, Report, Spread, over, size
from services.metric import METRICS, Metric, difference, written
from services.trainer.core.selection import BEFORE, CORRECTED, Selection


def table(report: Report) -> Group:
    """The report for a terminal."""
    return Group(
        Text(), _title(report), Text(), _accuracy(report), _verdict(report), Text(), _traffic(report), Text(), _times(report)
    )


def _title(report: Report) -> Text:
    numbers = ", ".join(f"{m:.4g}/{s:.4g}" for m, s in zip(report.mean, report.std, strict=True))
    return Text.assemble(
        (report.network, "bold"),
        f"  BER {report.ber:g}, {report.codec}{over(report.link)}, {_many(report.iterations, 'iteration')} of "
        f"{_many(report.batch, 'image')}\n",
        f"{report.chip}\n" if report.chip else "",
        (f"pixels in 0..1 normalised by mean/std {numbers}", "dim"),
    )


def _accuracy(report: Report) -> Table:
    main, five = report.accuracy, report.accuracy_top5 if report.metric == "top1" else None
    count = len(main.faulty_before.values)
    seeds = _many(count, "fault seed")
    title = METRICS[report.metric].title
    grid = _grid(f"On {report.samples} held-out images", title, "std", *(("top-5", "std") if five else ()))
    own = "" if report.samples_float == report.samples else f" ({report.samples_float} of the server's)"
    calm = _calm(report)
    for name, field in (
        (f"float{own}", "float_"),
        ("int8, a sound chip, before", "sound"),
        (f"int8, {calm}, before", "int8"),
        (f"int8, {calm}, after", "int8_after"),
        (f"int8 as in the paper, {calm}", "plain"),
        (f"int8 as in the paper, faulty ({seeds})", "faulty_plain"),
        (f"int8, faulty, before ({seeds})", "faulty_before"),
        (f"int8, faulty, after ({seeds})", "faulty_after"),
    ):
        cells = []
        shown: list[tuple[Metric, Accuracy | None]] = [(report.metric, main), ("top5", five)]
        for metric, found in shown:
            value: Spread | None = None if found is None else getattr(found, field)
            if value is not None:
                std = f"{value.std:.{METRICS[metric].digits}f}" if len(value.values) > 1 else ""
                cells += [written(metric, value.mean), std]
        if cells:
            grid.add_row(name, *cells)
    return grid


def _calm(report: Report) -> str:
    """What measurements without soft errors are without: a chip's permanent faults stay in."""
    return "no soft errors" if report.chip else "no faults"


def _verdict(report: Report) -> Group:
    found = report.accuracy
    lines = []
    if report.against == "fault-free outputs":
        lines.append(Text("measured against the fault-free int8 outputs from before retraining: there is no ground truth"))
    for name, verdict, before, after, recovered in (
        ("faulty", report.verdict, found.faulty_before, found.faulty_after, report.recovered),
        (_calm(report), report.verdict_fault_free, found.int8, found.int8_after, None),
    ):
        said = f"{name}: {difference(report.metric, after.mean - before.mean)}, {verdict}"
        said += "" if recovered is None else f"; {100 * recovered:.0f} % of what faults cost is back"
        lines.append(Text(said, style={"better": "green", "worse": "red", "within error": "yellow"}[verdict]))
    if found.faulty_plain is not None:
        gain = difference(report.metric, found.faulty_after.mean - found.faulty_plain.mean)
        said = f"in all: {gain} against int8 as in the paper"
        share = report.recovered_in_all
        said += "" if share is None else f"; {100 * share:.0f} % of what faults cost there is back"
        lines.append(Text(said))
    if report.selection is not None:
        lines.append(Text(_deployed(report.selection, report.metric)))
    return Group(*lines)


def _deployed(chosen: Selection, metric: Metric) -> str:
    """What is deployed, and the measurement by which: agreement of answers, or the error of pixels."""
    best = max(chosen.candidates[1:], key=lambda one: one.gain, default=None)
    if best is None:
        return "deployed: the network from before, for nothing was tried"
    name = "biases corrected, nothing retrained" if best.name == CORRECTED else f"of {best.name}"
    what = f"the network from before: the best one tried ({name}) is not better beyond its error"
    if chosen.deployed != BEFORE:
        what = f"the network {'with ' if best.name == CORRECTED else ''}{name}"
    gained = f"{best.gain:+.1f} ± {best.error:.1f} points of agreement with {chosen.against}"
    if metric in ("psnr", "ssim"):  # agreement of pixels is 1 less their error, in shares of the range
        gained = f"root mean squared error {-best.gain:+.2f} ± {best.error:.2f} % of the range, against {chosen.against}"
    return f"deployed: {what} ({gained}, on {chosen.samples} training images kept for that)"


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
    grid.add_row("elements in layers rebuilt wrong", size(wrong.elements, ""), size(wrong.mismatched, ""),
                 f"{100 * wrong.mismatched / wrong.elements:.4f} %" if wrong.elements else "")  # fmt: skip
    return grid


def _times(report: Report) -> Table:
    grid = _grid("Seconds an iteration", "host", "device (model)", "link (model)")
    for stage, time in report.stages_s.items():
        grid.add_row(stage, *(f"{value:.4f}" if value else "" for value in (time.host, time.device, time.link)))
    parts = [(time.host, time.device, time.link) for time in report.stages_s.values()]
    grid.add_section()
    # Host times of stages add up work and waiting of layers that are under way side by side.
    columns = [sum(column) for column in zip(*parts, strict=True)]
    grid.add_row("each column added up", *(f"{value:.4f}" if value else "" for value in columns))
    grid.add_row("an iteration, a stage at a time", f"{report.sum_s:.4f}", "", "")
    grid.add_row("an iteration, layers streaming", f"{report.overlapped_s:.4f}", "", "")
    grid.add_row("wall clock on this host", f"{report.iteration_s:.4f}", "", "")
    return grid


def _grid(title: str, *columns: str) -> Table:
    """A table without lines, of eighty columns at most."""
    grid = Table(title=None, box=None, pad_edge=False, header_style="dim")
    grid.add_column(title, min_width=32, style="default", header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right", min_width=8)
    return grid


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
