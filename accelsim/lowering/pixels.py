"""Pixels to what a network reads: the float module's normalised images and the int8 network's input table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accelsim.int8.network import Int8, UInt8

BELOW_ZERO: Final = -0.25
"""A network whose fault-free outputs go that far down has pixels of -1 to 1 (tanh), and not of 0 to 1."""


def black_and_white(lowest: float) -> tuple[float, float]:
    """What black and white are among outputs of which the lowest is ``lowest``."""
    return (-1.0, 1.0) if lowest < BELOW_ZERO else (0.0, 1.0)


def normalise(images: UInt8, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8 (N, H, W, C) as a float module takes them: contiguous float32 (N, C, H, W), ``(pixel / 255 - mean) / std``.

    ``mean`` and ``std`` hold one value a channel.
    """
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous().float() / 255
    return (x - torch.tensor(list(mean))[:, None, None]) / torch.tensor(list(std))[:, None, None]


def input_scale(mean: Sequence[float], std: Sequence[float]) -> float:
    """The step at which no pixel of any channel is clipped, a float32 value."""
    return float(np.float32(np.abs(_values(mean, std)).max() / 127))


def input_table(mean: Sequence[float], std: Sequence[float], steps: npt.NDArray[np.float64]) -> Int8:
    """(C, 256) of ``(pixel / 255 - mean) / std``, in ``steps`` (C,)."""
    return np.clip(np.rint(_values(mean, std) / steps[:, None]), -128, 127).astype(np.int8)


def _values(mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float64]:
    """What each pixel value is worth in each channel, (C, 256)."""
    pixels = np.arange(256, dtype=np.float64) / 255
    return np.asarray((pixels - np.asarray(mean, np.float64)[:, None]) / np.asarray(std, np.float64)[:, None], np.float64)
