"""What a run came to: ``report.json``."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev, pvariance
from typing import Literal

import msgspec

from accelsim.faults import Rates
from broker.link import STAMP, Profile, transfer_s
from r2f.prepare import Prepared
from services.bus.messages import ROOT
from services.metric import METRICS, Metric
from services.scheme import Codec
from services.trainer.core import job, ledger
from services.trainer.core import result as results
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.job import Against
from services.trainer.core.selection import Selection
from services.trainer.core.task import Method

FILE = "report.json"
STAGES = ("forward", "tmr", "increment", "compress", "uplink", "decompress", "backward", "quantise", "downlink")
"""In the order of one iteration (the paper's Fig. 6)."""


class Spread(msgspec.Struct, kw_only=True, frozen=True):
    """Mean and standard deviation (of the population) over ``values``, in the metric's unit, one a fault seed."""

    mean: float
    std: float
    values: tuple[float, ...] = ()


class Accuracy(msgspec.Struct, frozen=True, rename={"float_": "float"}):
    """A metric on images held out from training; the faulty ones over several fault seeds, the same before and after."""

    float_: Spread
    int8: Spread
    """Fault-free, before retraining."""
    int8_after: Spread
    faulty_before: Spread
    faulty_after: Spread
    plain: Spread | None = None
    """Fault-free in the paper's arithmetic, not retrained; None where that was not measured."""
    faulty_plain: Spread | None = None
    sound: Spread | None = None
    """Before retraining, on an array without any fault; None where the run had no chip with permanent faults."""


Verdict = Literal["better", "worse", "within error"]
"""After against before. Beyond two standard errors: that of the fault seeds, each paired with itself, and that of the images,
as if they were others before and after (they are the same, so this is cautious)."""


class Uplink(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes from the device, all iterations: int8 outputs and uint8 images as they are, and what was really sent."""

    direct: int
    sent: int
    direct_layers: int
    """Of ``direct``: the intermediate outputs."""
    sent_layers: int
    """Of ``sent``: their increments, digests, repairs and framing."""
    sent_repairs: int = 0
    """Of ``sent_layers``: what it cost to mend what was rebuilt wrong."""


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
    repaired: int = 0
    """Elements that were wrong until a repair mended them."""


class Report(msgspec.Struct, kw_only=True, frozen=True):
    """``report.json``."""

    folder: str
    """The run's, as it was when this was written."""
    network: str
    ber: float
    """The largest of the rates at the sites; ``rates`` has them all."""
    rates: Rates
    codec: Codec
    link: str
    chip: str = ""
    """The permanent faults that the device was given, in words. "Fault-free" is without soft errors: these stay in."""
    iterations: int
    batch: int
    method: Method
    selection: Selection | None
    """How it was decided what is deployed; None where no samples were kept for that."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """The normalisation used: of each channel, of pixels in 0..1."""
    samples: int
    """Held-out images of the device in each evaluation, evenly over all that it has."""
    samples_float: int
    """Those of the server, on which the float network was measured: the same images where they have the same data."""
    metric: Metric = "top1"
    against: Against = "labels"
    """What the metric is measured against. "fault-free outputs" are those of the int8 network from before retraining: there
    is no ground truth, and fault-free before retraining is the best that there is by definition."""
    accuracy: Accuracy
    """In the metric's unit: per cent, dB of psnr, or 1 at most of ssim."""
    accuracy_top5: Accuracy | None
    """None where the network has no more than five classes, or none."""
    verdict: Verdict
    """Of the faulty device's metric."""
    verdict_fault_free: Verdict
    recovered: float | None
    """(after - before) / (fault-free before - before) of the metric; None where faults cost too little to tell: less than a
    point, 0.1 dB or 0.005."""
    recovered_in_all: float | None
    """(after - plain) / (plain, fault-free - plain), faulty: against the paper's arithmetic, where that was measured."""
    uplink_bytes: Uplink
    downlink_bytes: Downlink
    stages_s: dict[str, StageTime]
    iteration_s: float
    """Mean wall time of an iteration on this host: the stages overlap."""
    sum_s: float
    """Mean of an iteration's stages, one after the other: modelled device and link time, measured host time of the rest."""
    overlapped_s: float
    """The same with layers streaming: a segment is on the link while the device computes the next one."""
    fidelity: Fidelity
    loss: tuple[float, ...]
    """Of each iteration, on the device's own outputs."""
    model_sha256: str
    sheet: str = ""
    """File in the folder with some images as they went in, and came out before and after; empty where outputs are classes."""


class ReportError(ValueError):
    """The run's folder does not hold a finished run; the message says what is missing."""


def collect(folder: Path, *, network: str, link: Profile | None, prepared: Prepared, sheet: str = "") -> Report:
    """The report of a finished run, from the files that the trainer left in its folder.

    ``network`` is the name to report it under; ``link`` the clock of the transfers, if any; ``prepared`` what was found out
    before it; ``sheet`` the file of sample images, if there is one.
    Raises ReportError if the run is not finished.
    """
    todo = job.read(folder)
    if not (folder / results.FILE).exists():
        raise ReportError(f"{folder / results.FILE}: missing; the run has not got that far, resume it with --resume {folder}")
    result = results.read(folder)
    rows = ledger.read(folder / results.PROGRESS)
    clean, before = result.clean_before, result.faulty_before
    clean_after, after = result.clean_after, result.faulty_after
    if clean is None or before is None or clean_after is None or after is None or len(rows) != result.iterations:
        raise ReportError(
            f"{folder}: {len(rows)} of {'?' if result.iterations is None else result.iterations} iterations are done"
            f"{'' if after else ', and the evaluation after them is missing'}; resume with --resume {folder}"
        )
    metric, plain = todo.metric or "top1", None
    if result.clean_plain is not None and result.faulty_plain is not None:
        plain = result.clean_plain, result.faulty_plain
    rates = todo.rates
    layers = sum(row.elements for row in rows)
    return Report(
        folder=str(folder.absolute()),
        network=network,
        ber=max(rates.input, rates.weight, rates.accumulator, rates.output),
        rates=rates,
        codec=todo.scheme.codec,
        link="none" if link is None else link.name,
        iterations=len(rows),
        method=todo.method,
        selection=result.selection,
        batch=todo.batch,
        chip=prepared.chip,
        mean=prepared.mean,
        std=prepared.std,
        samples=after.samples,
        samples_float=prepared.float_accuracy.samples,
        metric=metric,
        against=todo.against,
        accuracy=_over(metric, plain, prepared.sound, prepared.float_accuracy, clean, clean_after, before, after),
        accuracy_top5=(
            _over("top5", plain, prepared.sound, prepared.float_accuracy, clean, clean_after, before, after)
            if after.top5
            else None
        ),
        verdict=judged(metric, before, after),
        verdict_fault_free=judged(metric, clean, clean_after),
        recovered=_recovered(metric, clean, before, after),
        recovered_in_all=None if plain is None else _recovered(metric, *plain, after),
        sheet=sheet,
        uplink_bytes=Uplink(
            direct=layers + sum(row.input_bytes for row in rows),
            sent=sum(row.uplink_layers + row.uplink_inputs + row.uplink_repairs for row in rows),
            direct_layers=layers,
            sent_layers=sum(row.uplink_layers + row.uplink_repairs for row in rows),
            sent_repairs=sum(row.uplink_repairs for row in rows),
        ),
        downlink_bytes=Downlink(
            full=sum(row.downlink_full for row in rows) or len(rows) * (folder / job.NETWORK).stat().st_size,
            sent=sum(row.downlink for row in rows),
        ),
        stages_s=_stages(rows, link),
        sum_s=fmean(_in_a_row(row, link) for row in rows),
        overlapped_s=fmean(_overlapped(row, link) for row in rows),
        iteration_s=fmean(row.wall_s for row in rows),
        fidelity=Fidelity(
            elements=layers,
            mismatched=sum(row.mismatched for row in rows),
            mismatched_layers=sum(row.mismatched_layers for row in rows),
            repaired=sum(row.repaired for row in rows),
        ),
        loss=tuple(row.loss for row in rows),
        model_sha256=result.model_sha256,
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and population standard deviation of one or more values."""
    return Spread(mean=fmean(values), std=pstdev(values), values=tuple(values))


def _over(
    metric: Metric, plain: tuple[Evaluation, Evaluation] | None, sound: Evaluation | None, *found: Evaluation
) -> Accuracy:
    """Of float, fault-free before and after, faulty before and after, of ``plain``: fault-free and faulty, and of an array
    without permanent faults."""
    made = Accuracy(*(spread(one.of(metric)) for one in (*found, *(plain or ()))))
    return made if sound is None else msgspec.structs.replace(made, sound=spread(sound.of(metric)))


def judged(metric: Metric, before: Evaluation, after: Evaluation) -> Verdict:
    """Whether a metric changed, on the same fault seeds and images before and after.

    Top-1 and top-5 by ``verdict``; others by the images' own gains, which are kept, each paired with itself.
    """
    if metric in ("top1", "top5"):
        return verdict(before.of(metric), after.of(metric), after.samples)
    gains = [b - a for a, b in zip(before.of(metric), after.of(metric), strict=True)]
    each = [b - a for a, b in zip(before.images, after.images, strict=True)]
    return _beyond(fmean(gains), _squared_error(gains) + _squared_error(each))


def _squared_error(gains: Sequence[float]) -> float:
    """Of their mean."""
    return pvariance(gains) / (len(gains) - 1) if len(gains) > 1 else 0.0


def verdict(before: Sequence[float], after: Sequence[float], samples: int) -> Verdict:
    """Whether an accuracy in per cent changed, from the same fault seeds and ``samples`` images before and after."""
    gains = [b - a for a, b in zip(before, after, strict=True)]
    of_images = sum(share * (100 - share) / samples for share in (fmean(before), fmean(after)))
    return _beyond(fmean(gains), _squared_error(gains) + of_images)


def _beyond(gain: float, squared_error: float) -> Verdict:
    if abs(gain) <= 2 * sqrt(squared_error):
        return "within error"
    return "better" if gain > 0 else "worse"


def _recovered(metric: Metric, clean: Evaluation, before: Evaluation, after: Evaluation) -> float | None:
    lost = fmean(clean.of(metric)) - fmean(before.of(metric))
    return (fmean(after.of(metric)) - fmean(before.of(metric))) / lost if lost >= METRICS[metric].least else None


def _stages(rows: Sequence[ledger.Row], link: Profile | None) -> dict[str, StageTime]:
    n = len(rows)
    times = {}
    for stage in STAGES:
        host = sum(row.host_s.get(stage, 0.0) for row in rows) / n
        device = sum(row.device_s.get(stage, 0.0) for row in rows) / n
        on_link = 0.0
        if stage == "uplink":
            on_link = fmean(_uplink_s(row, link) for row in rows)
        elif stage == "downlink":
            on_link = fmean(_on_link("down/model", row.downlink, link) for row in rows)
        if host or device or on_link:
            times[stage] = StageTime(host=host, device=device, link=on_link)
    return times


def _on_link(name: str, payload: int, link: Profile | None) -> float:
    """Seconds of one message on the link, MQTT and TCP framing included; none without a link or a message."""
    if link is None or payload == 0:
        return 0.0
    # The Bus reports sizes with its stamp, the clock adds it.
    unstamped = max(0, payload - STAMP)
    return transfer_s(f"{ROOT}/edge-0/{name}", unstamped, link, "up" if name.startswith("up") else "down")


def _uplink_s(row: ledger.Row, link: Profile | None) -> float:
    parts = [("up/inputs", row.uplink_inputs), ("up/repair", row.uplink_repairs)]
    parts += [("up/layers", segment.bytes) for segment in row.segments]
    return sum(_on_link(name, size, link) for name, size in parts)


def _server_s(row: ledger.Row, link: Profile | None) -> float:
    """What follows on the last activation: backward pass, quantising, the model's way down."""
    return row.host_s.get("backward", 0.0) + row.host_s.get("quantise", 0.0) + _on_link("down/model", row.downlink, link)


def _in_a_row(row: ledger.Row, link: Profile | None) -> float:
    on_host = sum(row.host_s.get(stage, 0.0) for stage in ("compress", "decompress"))
    return sum(row.device_s.values()) + on_host + _uplink_s(row, link) + _server_s(row, link)


def _overlapped(row: ledger.Row, link: Profile | None) -> float:
    """Device, codec, link and server each take the segments in order, one at a time."""
    device = compressed = rebuilt = 0.0
    sent = _on_link("up/inputs", row.uplink_inputs, link)
    for segment in row.segments:
        device += segment.device_s
        compressed = max(compressed, device) + segment.compress_s
        sent = max(sent, compressed) + _on_link("up/layers", segment.bytes, link)
        rebuilt = max(rebuilt, sent) + segment.rebuild_s
    return rebuilt + _on_link("up/repair", row.uplink_repairs, link) + _server_s(row, link)


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


def over(link: str) -> str:
    """`` over LINK``, nothing where no link was modelled."""
    return "" if link == "none" else f" over {link}"


def size(count: int, unit: str = "B") -> str:
    """A count with a decimal prefix: 1.23 MB."""
    value, prefix = float(count), ""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}".rstrip() if prefix else f"{count} {unit}".rstrip()
