"""How good a faulty device is: which samples it runs, under which fault seeds, and how many answers are right, or how far its
images are from what they should be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.faults import Rates
from accelsim.int8.network import Activation, Float32, Network, UInt8
from services.metric import Metric
from services.trainer.core import objective
from services.trainer.core.task import Task

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

TOP: Final = 5
"""The second number that is measured: whether the label is among so many largest outputs."""
FINEST: Final = 1 / (12 * 255**2)
"""Mean squared error of rounding to 8 bits, of pixels in 0..1."""
FIRST: Final = 1 << 30
"""Iteration numbers from here on are evaluations', so that their faults and events are never a training's."""
PLAIN_VERSION: Final = 1 << 30
"""Of the network in the paper's arithmetic, out of the way of those of training."""


class Evaluation(msgspec.Struct, kw_only=True, frozen=True):
    """What was measured on ``samples`` held-out images, one number a fault seed; empty lists for what was not."""

    samples: int
    top1: list[float] = []
    """Accuracy in per cent."""
    top5: list[float] = []
    """Empty where the network has no more than five classes: all answers are among five."""
    psnr: list[float] = []
    """Mean over images, in dB."""
    ssim: list[float] = []
    """Mean over images; 1 is the same image."""
    miou: list[float] = []
    """Intersection over union of all images' pixels, the mean over classes that are there or were answered, in per cent."""
    images: list[float] = []
    """Of psnr, ssim and miou: each image's own, the mean over the fault seeds. By these, what was before is compared with what
    is after image by image."""

    def of(self, metric: Metric) -> list[float]:
        """The numbers of a metric. Raises ValueError where it was not measured."""
        found: list[float] = getattr(self, metric)
        if not found:
            raise ValueError(f"{metric} was not measured")
        return found


class Counts(NamedTuple):
    """Right answers among ``samples``. ``top5`` is None where the network has no more than five classes."""

    samples: int
    top1: int
    top5: int | None


class Reference(NamedTuple):
    """What outputs that are images are measured against: images (N, H, W, C), an integer of which is worth
    ``zero + scale * value`` in the units of the network's outputs, where ``black`` and ``white`` are the ends of the range; or
    for ``miou`` classes (N, H, W), or outputs (N, H, W, C) whose largest is the class."""

    metric: Metric
    values: Activation
    scale: float = 1.0
    zero: float = 0.0
    black: float = 0.0
    white: float = 1.0

    def at(self, places: Int64) -> Reference:
        """That of some of the samples."""
        return self._replace(values=np.asarray(self.values[places]))


class Quality(NamedTuple):
    """Each image's own metric (N,) float64, and of ``miou`` the pixels (classes, classes) int64 by right class and answer."""

    metric: Metric
    scores: Float64
    confusion: Int64 | None = None


Measured = Counts | Quality


class Pass(NamedTuple):
    """One forward pass of an evaluation."""

    run: int
    """Which of the seeds it is of, from 0."""
    seed: int
    """Of its faults."""
    iteration: int
    samples: Int64


def seeds_of(rates: Rates, seeds: Sequence[int]) -> Sequence[int]:
    """The fault seeds that tell anything apart: the first alone where there are no faults."""
    return seeds if rates != Rates() else seeds[:1]


def passes(samples: Int64, seeds: Sequence[int], batch: int) -> Iterator[Pass]:
    """The passes of an evaluation in order: all samples under the first seed, ``batch`` at a time, then the next seed."""
    for run, seed in enumerate(seeds):
        for number, start in enumerate(range(0, len(samples), batch)):
            yield Pass(run, seed, FIRST + number, samples[start : start + batch])


def pass_of(iteration: int) -> int | None:
    """Which pass of its seed an iteration's number is of, from 1; None where it is a training's."""
    return iteration - FIRST + 1 if iteration >= FIRST else None


def against_targets(task: Task, network: Network, targets: UInt8) -> Reference:
    """Target images uint8 (N, H, W, C), or masks (N, H, W), as what a task's evaluations are against."""
    if objective.kind_of(task, network) == "masks":
        return Reference("miou", targets)
    assert task.metric is not None
    assert task.output_range is not None
    black, white = task.output_range
    return Reference(task.metric, targets, (white - black) / 255, black, black, white)


def against_outputs(task: Task, network: Network, outputs: Activation) -> Reference:
    """Fault-free outputs (N, H, W, C) of the network from before retraining, likewise."""
    if objective.kind_of(task, network) == "masks":
        return Reference("miou", outputs)
    assert task.metric is not None
    assert task.output_range is not None
    return Reference(task.metric, outputs, network.layers[-1].scale, 0.0, *task.output_range)


def count(outputs: Activation | Float32, labels: Int64) -> Counts:
    """How many of the labels (N,) the outputs (N, 1, 1, C) answer with. Among equal outputs the lowest class comes first.

    Raises ValueError where they are not of one length, or a label is no class of the network's.
    """
    rows = outputs.reshape(len(outputs), -1)
    classes = rows.shape[1]
    if labels.shape != (len(rows),):
        raise ValueError(f"evaluation: labels of shape {labels.shape} for {len(rows)} outputs")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"evaluation: labels run from {labels.min()} to {labels.max()}, the network has {classes} classes")
    if not np.isfinite(rows).all():
        raise ValueError("evaluation: outputs are not finite numbers; the network itself is broken")
    own = rows[np.arange(len(rows)), labels][:, None]
    before = (rows > own) | ((rows == own) & (np.arange(classes) < labels[:, None]))
    rank = before.sum(axis=1)
    return Counts(len(rows), int((rank < 1).sum()), int((rank < TOP).sum()) if classes > TOP else None)


def measure(outputs: Activation | Float32, scale: float, truth: Int64 | Reference) -> Measured:
    """What outputs (N, H, W, C), each integer worth ``scale``, come to against labels (N,), or images of as many.

    Raises ValueError where they do not fit.
    """
    if not isinstance(truth, Reference):
        return count(outputs, truth)
    if not np.isfinite(outputs).all():
        raise ValueError("evaluation: outputs are not finite numbers; the network itself is broken")
    if outputs.shape[: truth.values.ndim] != truth.values.shape:
        raise ValueError(f"evaluation: outputs of shape {outputs.shape}, held against {truth.values.shape}")
    if truth.metric == "miou":
        return _confused(outputs, truth.values)
    span = truth.white - truth.black
    got = (np.float64(scale) * outputs - truth.black) / span
    wanted = (truth.zero + np.float64(truth.scale) * truth.values - truth.black) / span
    each = _psnr if truth.metric == "psnr" else _ssim
    return Quality(truth.metric, np.array([each(a, b) for a, b in zip(wanted, got, strict=True)], np.float64))


def _psnr(wanted: Float64, got: Float64) -> float:
    """dB of an image in 0..1; errors that rounding to 8 bits would leave are the least that is told (58.9 dB)."""
    from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

    if mean_squared_error(wanted, got) <= FINEST:
        return float(-10 * np.log10(FINEST))
    return float(peak_signal_noise_ratio(wanted, got, data_range=1.0))


def _ssim(wanted: Float64, got: Float64) -> float:
    from skimage.metrics import structural_similarity

    return float(structural_similarity(wanted, got, data_range=1.0, channel_axis=-1))


def _confused(outputs: Activation | Float32, truth: Activation) -> Quality:
    classes = outputs.shape[3]
    wanted = (truth if truth.ndim == 3 else truth.argmax(axis=-1)).reshape(len(outputs), -1).astype(np.int64)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < classes:
        raise ValueError(f"evaluation: masks hold {wanted.min()} to {wanted.max()}, the network has {classes} classes")
    got = outputs.argmax(axis=-1).reshape(len(outputs), -1)
    places = np.arange(len(outputs))[:, None] * classes**2 + wanted * classes + got
    each = np.bincount(places.reshape(-1), minlength=len(outputs) * classes**2).reshape(-1, classes, classes)
    return Quality("miou", np.array([_miou(one) for one in each], np.float64), each.sum(axis=0, dtype=np.int64))


def _miou(confusion: Int64) -> float:
    """Per cent, of pixels by right class and answer; classes that are in neither do not count."""
    both = confusion.diagonal()
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    there = either > 0
    return float(100 * (both[there] / either[there]).mean())


def accuracy(measured: Sequence[Sequence[Measured]]) -> Evaluation:
    """The evaluation that some passes, a sequence for each seed and all of one kind, come to."""
    qualities = [[one for one in of_seed if isinstance(one, Quality)] for of_seed in measured]
    if any(qualities):
        return _quality(qualities)
    return _accuracy([[one for one in of_seed if isinstance(one, Counts)] for of_seed in measured])


def _quality(measured: Sequence[Sequence[Quality]]) -> Evaluation:
    metric = measured[0][0].metric
    scores = np.stack([np.concatenate([one.scores for one in of_seed]) for of_seed in measured])
    values = scores.mean(axis=1).tolist()
    if metric == "miou":
        values = [
            _miou(np.sum([one.confusion for one in of_seed if one.confusion is not None], axis=0)) for of_seed in measured
        ]
    return Evaluation(samples=scores.shape[1], **{metric: values, "images": scores.mean(axis=0).tolist()})


def _accuracy(counts: Sequence[Sequence[Counts]]) -> Evaluation:
    samples = 0
    top1: list[float] = []
    top5: list[float] = []
    for of_seed in counts:
        samples = sum(found.samples for found in of_seed)
        top1.append(100 * sum(found.top1 for found in of_seed) / samples)
        five = [found.top5 for found in of_seed if found.top5 is not None]
        if five:
            top5.append(100 * sum(five) / samples)
    return Evaluation(samples=samples, top1=top1, top5=top5)
