"""The metrics that a run may be judged by: told by ``r2f``, measured by the trainer, carried by ``event/progress``."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Metric = Literal["top1", "top5", "psnr", "ssim", "miou"]


class Unit(NamedTuple):
    """How a metric is written."""

    title: str
    unit: str
    digits: int
    least: float
    """Of a smaller loss nobody could say how much of it came back."""
    points: str
    """Of differences."""
    most: float | None
    """The best that there is; None where there is no end that a picture could show."""


METRICS: Final[dict[Metric, Unit]] = {
    "top1": Unit("top-1", "%", 1, 1.0, "points", 100.0),
    "top5": Unit("top-5", "%", 1, 1.0, "points", 100.0),
    "psnr": Unit("PSNR", "dB", 2, 0.1, "dB", None),
    "ssim": Unit("SSIM", "", 4, 0.005, "", 1.0),
    "miou": Unit("mIoU", "%", 1, 1.0, "points", 100.0),
}


def written(metric: Metric, value: float) -> str:
    """A metric's value with its unit, as ``26.71 dB``."""
    unit = METRICS[metric]
    return f"{value:.{unit.digits}f} {unit.unit}".rstrip()


def difference(metric: Metric, value: float) -> str:
    """A difference of two values with its sign and unit, as ``+3.1 points``."""
    unit = METRICS[metric]
    return f"{value:+.{unit.digits}f} {unit.points}".rstrip()
