"""The parts of a backward pass that are no convolution, on as many threads as torch has.

Torch would read a float32 plane, write another, and take both from memory that is new. These read the bytes that the
device sent, write over what nobody else reads, and sum a layer's bias on the way. Gradients are (N, C, H, W) float32
tensors as torch sees them, lying channels-last or views of such; activations are (N, H, W, C) int8 or uint8.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accelsim.int8.network import Activation, MaxPool, UInt8
from services.trainer.core import kernels

_POOL: Final = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="backward")
_GRAIN: Final = 1 << 19
"""Elements that make a thread worth waking: each gets so many or more."""


def gate(gradient: Tensor, y: Activation, limits: UInt8, *, owned: bool) -> tuple[Tensor, Tensor]:
    """The gradient where a layer's activation lets it pass, and its sums (C,) over images and pixels.

    ``y`` are the layer's outputs: an element passes where its byte, less one and modulo 256, is below ``limits`` (C,).
    A gradient that is ``owned`` is overwritten.
    """
    y = np.ascontiguousarray(y)
    rows = _rows(gradient)
    sums = np.zeros((kernels.CHUNKS, y.shape[3]), np.float32)
    out = rows.gradient if rows.dense and (owned or rows.gradient is not gradient) else _empty(y.shape)
    to, seen, n, pixels = out.data_ptr(), _address(y), rows.images, rows.pixels
    _parallel(
        kernels.CHUNKS,
        y.size,
        lambda first, last: kernels.gate(*rows.view, to, seen, limits, sums, n, pixels, first, last),
    )
    return out, _total(sums)


def column_sums(gradient: Tensor) -> Tensor:
    """Sums (C,) over images and pixels."""
    rows = _rows(gradient)
    sums = np.zeros((kernels.CHUNKS, gradient.shape[1]), np.float32)
    _parallel(
        kernels.CHUNKS,
        gradient.numel(),
        lambda first, last: kernels.column_sums(*rows.view, sums, rows.images, rows.pixels, first, last),
    )
    return _total(sums)


def widen(value: Activation) -> Tensor:
    """An activation as torch sees it: (N, C, H, W) float32, lying channels-last."""
    value = np.ascontiguousarray(value)
    out = _empty(value.shape)
    x, signed, to = _address(value), value.dtype == np.int8, out.data_ptr()
    _parallel(value.size, value.size, lambda first, last: kernels.widen(x, signed, to, first, last))
    return out


def move_channels(gradient: Tensor, order: npt.NDArray[np.int32], channels: int) -> Tensor:
    """Channel i of the gradient to channel ``order[i]`` of ``channels``; the others are 0."""
    rows = _rows(gradient)
    n, moved, h, w = gradient.shape
    source = np.full(channels, -1, np.int32)
    source[order] = np.arange(moved, dtype=np.int32)
    out = _empty((n, h, w, channels))
    to = out.data_ptr()
    _parallel(
        n * h * w,
        out.numel(),
        lambda first, last: kernels.move_channels(*rows.view, source, to, moved, h * w, first, last),
    )
    return out


def through_max(layer: MaxPool, x: Activation, gradient: Tensor) -> Tensor:
    """To the first of the largest integers of each window, as torch does."""
    rows = _rows(gradient)
    x = np.ascontiguousarray(x)
    h, w, _ = layer.shape
    window = np.array([*x.shape[1:], h, w, *layer.kernel, *layer.stride, *layer.padding, *layer.dilation], np.int64)
    out = _empty(x.shape)
    seen, to, flip = _address(x), out.data_ptr(), 128 if x.dtype == np.int8 else 0
    _parallel(len(x), x.size, lambda first, last: kernels.max_pool(*rows.view, seen, flip, window, to, first, last))
    return out


class _Rows(NamedTuple):
    """A gradient as the kernels take it."""

    gradient: Tensor
    """The one that was given, or a copy where that lies otherwise."""
    view: tuple[int, int, int]
    """Address, floats from one image to the next, from one pixel to the next."""
    images: int
    pixels: int
    dense: bool
    """Whether row lies behind row."""


def _rows(gradient: Tensor) -> _Rows:
    n, c, h, w = gradient.shape
    image, channel, line, pixel = gradient.stride()
    if w == 1:
        pixel = line
    if (c > 1 and channel != 1) or (h > 1 and w > 1 and line != w * pixel):
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        image, pixel = h * w * c, c
    dense = (n == 1 or image == h * w * c) and (h * w == 1 or pixel == c)
    return _Rows(gradient, (gradient.data_ptr(), image, pixel), n, h * w, dense)


def _address(value: Activation) -> int:
    return int(value.__array_interface__["data"][0])


def _empty(shape: tuple[int, ...]) -> Tensor:
    """(N, C, H, W), channels-last, for an activation of shape (N, H, W, C)."""
    n, h, w, c = shape
    return torch.empty(n, h, w, c).permute(0, 3, 1, 2)


def _total(sums: npt.NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(sums.sum(axis=0, dtype=np.float64).astype(np.float32))


def _parallel(count: int, elements: int, work: Callable[[int, int], None]) -> None:
    """Share 0..count-1 out among torch's threads, as long as there are enough elements."""
    parts = max(1, min(torch.get_num_threads(), count, elements // _GRAIN))
    if parts == 1:
        work(0, count)
        return
    edges = [count * part // parts for part in range(parts + 1)]
    others = [_POOL.submit(work, edges[part], edges[part + 1]) for part in range(1, parts)]
    try:
        work(0, edges[1])
    finally:
        wait(others)
    for other in others:
        other.result()
