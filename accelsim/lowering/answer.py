"""Answer: where a classifier's outputs lie among the 256 integers, so that the fewest flips change which class is largest.

A constant added to all outputs changes no answer. If the largest one lies near 255, no flip can lift another over it, since
a flip upwards sets a bit that was zero; only the largest itself is then worth hitting. How far to go that way is a choice
between flips, rounding and what falls off either end; it is made for the stated bit error rate on the calibration outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

MANY = 100
"""Classes from which on the five largest outputs count instead of the largest one."""
_NOISE = 0.25
"""Standard deviation of what is added to calibration outputs, over theirs: images to come, and faults further up, are less
clear than images that the network was trained on."""
_SPANS = 2.0 ** np.arange(-4.0, 0.51, 0.5)
"""Shares of the outputs' range that 256 steps may span."""
_TOPS = np.arange(128, 257, 16)
"""Integers that the mean of the largest outputs may get. Not beyond 255: soft labels need to tell them apart."""


@dataclass(frozen=True, slots=True)
class Placing:
    """How a classifier's outputs become uint8: ``clamp(rint((y + shift) / scale), 0, 255)``."""

    scale: float
    shift: float
    wrong: float
    """Expected share of answers that rounding, clipping and flips change."""


def place(outputs: Float64, ber: float) -> Placing:
    """The best placing of outputs (N, classes), in real units, for flips of each bit at rate ``ber``."""
    noise = np.random.default_rng(0).normal(0.0, _NOISE * outputs.std(), outputs.shape)
    noisy = outputs + noise
    count = 5 if outputs.shape[1] >= MANY else 1
    span, top = float(noisy.max() - noisy.min()), float(noisy.max(axis=1).mean())
    found = []
    for share in _SPANS:
        scale = float(np.float32(max(share * span, 1e-12) / 255))
        for level in _TOPS:
            shift = scale * float(level) - top
            found.append(Placing(scale, shift, _wrong(noisy, scale, shift, ber, count)))
    return min(found, key=lambda placing: placing.wrong)


def _wrong(outputs: Float64, scale: float, shift: float, ber: float, count: int) -> float:
    """Expected share of the ``count`` largest outputs that are no longer among those, ties counting half."""
    q = np.clip(np.rint((outputs + shift) / scale), 0, 255).astype(np.int64)
    largest = np.argsort(-outputs, axis=1, kind="stable")
    inside, outside = (np.take_along_axis(q, part, 1) for part in (largest[:, :count], largest[:, count:]))
    least, most = inside.min(1, keepdims=True), outside.max(1, keepdims=True)
    lost = (inside < most) + 0.5 * (inside == most)
    struck = _ABOVE[outside, least].sum(1) + _ABOVE[255 - inside, 255 - most].sum(1)
    return float((lost.mean(1) + ber * struck / count).clip(max=1).mean())


def _above() -> Float64:
    """(256, 256): of the eight flips of v, how many give more than t, ties counting half, at [v, t]."""
    flipped = np.arange(256)[:, None] ^ (1 << np.arange(8))
    t = np.arange(256)
    more, same = flipped[:, :, None] > t, flipped[:, :, None] == t
    table: Float64 = (more + 0.5 * same).sum(1)
    return table


_ABOVE = _above()
