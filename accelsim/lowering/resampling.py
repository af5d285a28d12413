"""Images made larger, smaller or wider: each pixel of the result is a fixed weighted mean of some of the image's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from accelsim.int8.checks import MOST_STEPS
from accelsim.int8.network import Int32
from accelsim.lowering import graph
from accelsim.lowering.traced import Traced

if TYPE_CHECKING:
    from accelsim.lowering.builder import Builder

_MODES = ("nearest", "nearest-exact", "bilinear", "area")
_MOST_TAPS = 64
_CAN = f"modes {', '.join(_MODES)} work where weights are whole steps of at most 1/2048, and so does a transposed convolution"


def interpolate(
    b: Builder, input: Traced, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Traced:  # fmt: skip
    """Another size, by torch's own weights: repetition by whole factors only moves, the rest are means of rows and columns."""
    operand = b.image(input)
    h, w, c = b.built.shape_of(operand)
    if input.origin.dim() != 4 or mode not in _MODES or antialias:
        raise b.refuse(f"interpolate of mode {mode!r}{' with antialias' if antialias else ''}", _CAN)
    asked = scale_factor if size is None else size
    sides = [float(v) for v in (asked if isinstance(asked, Sequence) else (asked, asked))]
    wanted = sides if size is None else [side / n for side, n in zip(sides, (h, w), strict=True)]
    if mode.startswith("nearest") and all(v == int(v) and v >= 1 for v in wanted):
        s = (int(wanted[0]), int(wanted[1]))
        blocks = tuple((0, i, j) for i in range(s[0]) for j in range(s[1]))
        shape = (h * s[0], w * s[1], c)
        return b.add(graph.Interleave(name=b.label, inputs=[operand], shape=shape, step=s, blocks=blocks), input)
    dtype = torch.float32 if mode.startswith("nearest") else torch.float64  # nearest rounds as it does for float32 images
    more: dict[str, Any] = {"mode": mode, "align_corners": align_corners}
    axes = []
    for n, side in zip((h, w), sides, strict=True):
        ones = torch.eye(n, dtype=dtype).reshape(1, n, n, 1)
        if size is None:
            y = F.interpolate(ones, scale_factor=(side, 1.0), recompute_scale_factor=recompute_scale_factor, **more)
        else:
            y = F.interpolate(ones, size=(int(side), 1), **more)
        found = _whole(y[0, :, :, 0].T.double().numpy())
        if found is None:
            raise b.refuse(f"interpolate of {n} rows or columns to {y.shape[2]}, mode {mode!r}", _CAN)
        axes.append(found)
    (rows, row_weights), (columns, column_weights) = axes
    if int(row_weights[0].sum()) * int(column_weights[0].sum()) > MOST_STEPS:
        raise b.refuse(f"interpolate to {len(rows)} by {len(columns)}, mode {mode!r}", _CAN)
    node = graph.Resample(
        name=b.label, inputs=[operand], shape=(len(rows), len(columns), c), rows=rows, row_weights=row_weights,
        columns=columns, column_weights=column_weights,
    )  # fmt: skip
    return b.add(node, input)


def _whole(matrix: npt.NDArray[np.float64]) -> tuple[Int32, Int32] | None:
    """(places, weights), int32 (H, A) each, of a matrix (H, n) of shares of n; None where no whole numbers have them."""
    shares = [Fraction(float(v)).limit_denominator(2048) for v in np.unique(matrix)]
    steps = math.lcm(*(share.denominator for share in shares))
    if steps > 2048 or min(shares) < 0:
        return None
    weights = np.rint(matrix * steps).astype(np.int32)
    taps = int((weights > 0).sum(axis=1).max())
    close = np.abs(weights / steps - matrix).max() < 1e-9
    if not close or not (weights.sum(axis=1) == steps).all() or taps > _MOST_TAPS:
        return None
    places = np.argsort(weights == 0, axis=1, kind="stable")[:, :taps]
    return places.astype(np.int32), np.take_along_axis(weights, places, axis=1)


def padded(input: Traced, pad: Sequence[int], mode: str) -> torch.Tensor:
    """The elements of ``input`` and, around them, those that reflection, replication or going round puts there."""
    index = input.origin
    for back, ends in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
        places = torch.arange(index.shape[-back], dtype=torch.float64).reshape(1, 1, -1)
        index = index.index_select(index.dim() - back, F.pad(places, ends, mode).reshape(-1).long())
    return index
