"""Faulty executions of a MAC layer by the compiled kernels: dense or sparse, whichever is cheaper, with the same integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from accelsim.engine import kernels, vnni
from accelsim.engine.kernels import Execution, Packed, Quads, Struck, Taps
from accelsim.engine.packing import is_depthwise
from accelsim.faults import Flips
from accelsim.int8.network import Activation, Conv, Int32

Int64 = npt.NDArray[np.int64]
Work = Callable[[int, int], None]
"""Does a range first..last-1 of equal pieces of a layer."""
_Deltas = tuple[Int32, Int32, Int32, Int64]
"""(channel in its group, column or tap, what is added) of each weight flip of a replica, and where each group's begin."""


def address(x: Activation) -> int:
    """Where an array's first element lies."""
    return int(x.__array_interface__["data"][0])


def work(mac: Packed, layer: Conv, x: Activation, flips: Sequence[Flips], ys: Sequence[Activation]) -> Work:
    """Executions of a MAC layer, one for each of ``flips``, into ys: a range of output pixels (of N*OH*OW) at a time.

    One on its own has its flips in the operands, so that it costs what a fault-free one does; several are sparse
    corrections of the fault-free accumulators, but for those with so many flips that the operands are cheaper.
    """
    sparse = [r for r, f in enumerate(flips) if len(flips) > 1 and _sparse_is_cheaper(layer, x.shape, f)]
    groups = ([sparse] if sparse else []) + [[r] for r in range(len(flips)) if r not in sparse]
    calls = [call(mac, layer, x, [flips[r] for r in group], [ys[r] for r in group]) for group in groups]

    def run(first: int, last: int) -> None:
        for one in calls:
            one(first, last)

    return run


def call(mac: Packed, layer: Conv, x: Activation, flips: Sequence[Flips], ys: Sequence[Activation]) -> Work:
    """One call of a kernel, with everything but the range of output pixels."""
    to = np.array([address(y) for y in ys], np.int64)
    struck, one = _struck(x, flips), len(flips) == 1
    if is_depthwise(layer):
        taps = _NO_TAPS if one and not len(flips[0].weight) else _taps([_deltas(layer, 1, f) for f in flips])
        shallow = Execution(mac, address(x), struck, taps, to).plain()
        return lambda first, last: kernels.depthwise(shallow, first, last)
    if one and len(flips[0].weight):
        mac = mac._replace(weight=mac.weight.copy(), start=mac.start.copy())
        kernels.patch_weights(mac.weight, mac.start, mac.zero, *_deltas(layer, mac.groups, flips[0]))
    quads = _NO_QUADS if one else _quads(mac, [_deltas(layer, mac.groups, f) for f in flips])
    deep = Execution(mac, address(x), struck, quads, to).plain()
    return lambda first, last: kernels.conv(deep, first, last)


def _struck(x: Activation, flips: Sequence[Flips]) -> Struck:
    if len(flips) == 1 and not (len(flips[0].input) or len(flips[0].accumulator) or len(flips[0].output)):
        return _NOTHING
    n, h, w, c = x.shape
    inputs, input_at = _joined([f.input for f in flips])
    rows = np.zeros((len(flips), n * h + 1), np.int64)
    columns, channels = np.empty(len(inputs), np.int32), np.empty(len(inputs), np.int32)
    for r in range(len(flips) if len(inputs) else 0):
        part = slice(input_at[r], input_at[r + 1])
        kernels.locate(inputs[part], w, c, input_at[r], rows[r], columns[part], channels[part])
    accumulators, outputs = _joined([f.accumulator for f in flips]), _joined([f.output for f in flips])
    return Struck(inputs, rows, columns, channels, *accumulators, *outputs)


# What one fault-free execution has of each; the kernels look no further.
_POSITIONS, _AT, _NUMBERS = np.zeros(0, np.int64), np.zeros(2, np.int64), np.zeros(0, np.int32)
_NOTHING = Struck(_POSITIONS, np.zeros((1, 1), np.int64), _NUMBERS, _NUMBERS, _POSITIONS, _AT, _POSITIONS, _AT)
_NO_TAPS = Taps(_NUMBERS, _NUMBERS, _NUMBERS, _AT)
_NO_QUADS = Quads(
    np.zeros((0, vnni.LANES, 4), np.int8), _POSITIONS, np.zeros((1, 1, 1), np.int64), np.zeros((1, 1, 1), np.int32)
)


def _joined(parts: Sequence[Int64]) -> tuple[Int64, Int64]:
    """One array of all parts, and where each begins."""
    if len(parts) == 1:
        # A read-only array is another type to Numba, which would compile the kernels again for it.
        part = parts[0] if parts[0].flags.writeable else parts[0].copy()
        return part, np.array([0, len(part)])
    at = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=at[1:])
    return np.concatenate(parts), at


def _deltas(layer: Conv, groups: int, flips: Flips) -> _Deltas:
    channels, columns, deltas = (np.empty(len(flips.weight), np.int32) for _ in range(3))
    starts = np.zeros(groups + 1, np.int64)
    if len(flips.weight):
        kernels.weight_deltas(layer.weight, flips.weight, channels, columns, deltas, starts, groups)
    return channels, columns, deltas, starts


def _taps(deltas: Sequence[_Deltas]) -> Taps:
    replica_at = np.zeros(len(deltas) + 1, np.int64)
    np.cumsum([len(channels) for channels, _, _, _ in deltas], out=replica_at[1:])
    channels, taps, values = (np.concatenate([part[i] for part in deltas]) for i in range(3))
    return Taps(channels, taps, values, replica_at)


def _quads(mac: Packed, deltas: Sequence[_Deltas]) -> Quads:
    blocks = mac.weight.shape[1]
    flipped = sum(len(channels) for channels, _, _, _ in deltas)
    values = np.zeros((2 * flipped, vnni.LANES, 4), np.int8)
    at = np.empty(2 * flipped, np.int64)
    block_at = np.zeros((len(deltas), mac.groups, blocks + 1), np.int64)
    start = np.zeros((len(deltas), mac.groups, blocks * vnni.LANES), np.int32)
    if flipped:
        n = 0
        for r, replica in enumerate(deltas):
            count = kernels.weight_quads(*replica, mac.zero, values[n:], at[n:], block_at[r], start[r])
            block_at[r] += n
            n += count
    return Quads(values, at, block_at, start)


def _sparse_is_cheaper(layer: Conv, shape: tuple[int, ...], flips: Flips) -> bool:
    if is_depthwise(layer):
        return True
    o, _, r, s = layer.weight.shape
    pixels = shape[0] * layer.shape[0] * layer.shape[1]
    dense = pixels * layer.weight.size / 64
    touched = len(flips.input) * r * s / (layer.stride[0] * layer.stride[1])
    sparse = touched * (20 + o / layer.groups / 8) + len(flips.weight) * pixels
    return bool(sparse < dense)
