"""A run's iterations as points of a curve that never grows beyond a number of points, however long the run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from services.trainer.core.ledger import Row

STAGES: Final = ("forward", "tmr", "increment", "compress", "uplink", "decompress", "backward", "quantise", "downlink")
"""In the order of one iteration; the two lists of seconds in a Point have this order."""
MOST: Final = 600
"""Points of a curve. Where there would be more, neighbours become one, and a new point stands for twice as many iterations."""


class Point(msgspec.Struct, array_like=True, frozen=True):
    """One iteration, or the mean of several in a row. Bytes and seconds are an iteration's, losses as they are."""

    iteration: int
    """The last of those that it stands for, from 0."""
    loss: float
    accuracy: float | None
    """Of the batches on the device, in per cent; None where the network gives no classes."""
    up: float
    """Bytes on the link from the device: inputs, layers and repairs."""
    up_direct: float
    """Bytes that the same would take as it is: int8 outputs and uint8 images."""
    down: float
    down_direct: float
    """Bytes of whole models."""
    repairs: float
    """Bytes of ``up`` that mended what was rebuilt wrong."""
    wall_s: float
    errors: float | None
    """Elements in a million that were not what the executions voted; None where nobody voted."""
    agreed: float | None
    """Elements of which all executions said the same, in per cent; None where no layer ran more than once."""
    host_s: list[float]
    device_s: list[float]


@dataclass(slots=True)
class Curve:
    """Points in the order of iterations. ``stride`` iterations make one, those in ``begun`` the next."""

    points: list[Point] = field(default_factory=list)
    stride: int = 1
    begun: list[Point] = field(default_factory=list)

    def add(self, point: Point) -> None:
        """Take in one iteration."""
        self.begun.append(point)
        if len(self.begun) < self.stride:
            return
        self.points.append(mean(self.begun))
        self.begun = []
        if len(self.points) >= MOST:
            self.points = [mean(self.points[i : i + 2]) for i in range(0, len(self.points), 2)]
            self.stride *= 2

    def all(self) -> list[Point]:
        """Every point, the last one of fewer iterations perhaps."""
        return [*self.points, mean(self.begun)] if self.begun else list(self.points)


def mean(points: list[Point]) -> Point:
    """One point for several that stand for as many iterations each."""
    if len(points) == 1:
        return points[0]

    def of(values: list[float]) -> float:
        return sum(values) / len(values)

    def known(values: list[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return of(there) if there else None

    return Point(
        points[-1].iteration,
        of([p.loss for p in points]),
        known([p.accuracy for p in points]),
        of([p.up for p in points]),
        of([p.up_direct for p in points]),
        of([p.down for p in points]),
        of([p.down_direct for p in points]),
        of([p.repairs for p in points]),
        of([p.wall_s for p in points]),
        known([p.errors for p in points]),
        known([p.agreed for p in points]),
        [of(list(column)) for column in zip(*(p.host_s for p in points), strict=True)],
        [of(list(column)) for column in zip(*(p.device_s for p in points), strict=True)],
    )


def point(row: Row, model_bytes: int) -> Point:
    """The point of a row that its events were filled in, with the bytes of a whole model."""
    voted = sum(layer.voted for layer in row.layers)
    compared = [layer for layer in row.layers if layer.executions > 1]
    several = sum(layer.voted for layer in compared)
    return Point(
        row.iteration,
        row.loss,
        row.accuracy,
        row.uplink_inputs + row.uplink_layers + row.uplink_repairs,
        row.elements + row.input_bytes,
        row.downlink,
        row.downlink_full or model_bytes,
        row.uplink_repairs,
        row.wall_s,
        1e6 * sum(layer.errors for layer in row.layers) / voted if voted else None,
        100 * sum(layer.agreed for layer in compared) / several if several else None,
        [row.host_s.get(stage, 0.0) for stage in STAGES],
        [row.device_s.get(stage, 0.0) for stage in STAGES],
    )
