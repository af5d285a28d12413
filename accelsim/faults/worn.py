"""The engine of a network on an array with permanent faults: what a chip computes where no soft error strikes.

It is an Engine, so that whoever predicts, referees or repairs with one does so for a known chip with another: the simulated
accelerator, the referee and the codec's two ends (docs/chips.md).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numba
import numpy as np
import numpy.typing as npt

from accelsim.engine import Engine, reference, shared
from accelsim.engine.engine import Each, FlipsOf
from accelsim.faults import Flips
from accelsim.faults.chip import digest
from accelsim.faults.permanent import FaultMap, faulty_channels, faulty_network, replicas, stops
from accelsim.int8.network import Activation, Int8, Int32, Network

Int64 = npt.NDArray[np.int64]


class Worn(Engine):
    """Engine of ``faulty_network(network, faults)`` whose MAC layers run through the faulty accumulators too.

    ``fault_free`` and ``elements`` are free of soft errors alone. Raises what Engine does.
    """

    def __init__(self, network: Network, faults: FaultMap, path: str = "auto") -> None:
        super().__init__(faulty_network(network, faults), path)
        self.loaded = network
        """As it was before the registers held it."""
        self.faults = faults

    def fault_free(self, index: int, operands: Sequence[Activation]) -> Activation:
        """See Engine; the output of the worn array."""
        if index not in self._macs:
            return super().fault_free(index, operands)
        return self.replicas(index, operands[0], [Flips()])[0]

    def replicas(self, index: int, x: Activation, flips: Sequence[Flips]) -> list[Activation]:
        """See Engine; the permanent faults are in each of them."""
        (x,) = self._check(index, [x])
        return replicas(self, self.faults, index, x, flips)

    def run(self, x: Int8, flips: FlipsOf | None = None, each: Each | None = None) -> list[Activation]:
        """See Engine."""
        if x.dtype != np.int8 or x.shape[1:] != self.network.input_shape:
            raise ValueError(f"network input: expected int8 (N, {self.network.input_shape}), got {x.dtype} {x.shape}")
        return self._run_layers(np.ascontiguousarray(x), flips, each)

    def elements(self, index: int, x: Activation, positions: Int64) -> Activation:
        """See Engine; those of channels whose sums pass a faulty accumulator go down its column one by one."""
        found = super().elements(index, x, positions)
        conv = self.conv(index)
        channels = faulty_channels(conv, self.faults)
        struck = np.flatnonzero(np.isin(positions % conv.shape[2], channels))
        if not len(struck):
            return found
        at = np.ascontiguousarray(positions[struck])
        channel = at % conv.shape[2]
        _, depth, _, kernel_w = conv.weight.shape
        filters = conv.weight.shape[0] // conv.groups
        of_column = channels % filters % self.faults.array.columns
        held = np.ascontiguousarray(conv.weight.transpose(0, 2, 3, 1).reshape(conv.weight.shape[0], -1))
        tables = {int(c): stops(self.faults, int(c), held.shape[1]) for c in np.unique(of_column)}
        first = np.zeros(self.faults.array.columns + 1, np.int64)
        for column in range(self.faults.array.columns):
            first[column + 1] = first[column] + len(tables.get(column, ()))
        (py, px), taps = conv.padding, conv.weight[0, 0].size
        sums = np.empty(len(at), np.int32)
        _down(
            np.pad(x, ((0, 0), (py, py), (px, px), (0, 0))),
            held,
            np.concatenate([tables[column] for column in sorted(tables)]),
            first[channel % filters % self.faults.array.columns],
            np.stack(np.unravel_index(at, (len(x), *conv.shape)), axis=1).astype(np.int64),
            channel // filters * depth,
            np.arange(taps) // kernel_w * conv.dilation[0],
            np.arange(taps) % kernel_w * conv.dilation[1],
            conv.stride,
            -(-held.shape[1] // self.faults.array.rows),
            sums,
        )
        part = replace(conv, multiplier=conv.multiplier[channel], high=conv.high[channel])
        found[struck] = reference.requantise(part, (sums + conv.bias[channel]).reshape(1, 1, 1, -1)).reshape(-1)
        return found


@numba.njit(cache=True, nogil=True)
def _down(
    x: Activation,
    weight: Int8,
    stops: Int64,
    first_stop: Int64,
    at: Int64,
    first_channel: Int64,
    taps_y: Int64,
    taps_x: Int64,
    stride: tuple[int, int],
    tiles: int,
    out: Int32,
) -> None:
    """Sums of single elements of MAC layers, (n, h, w, channel) rows in ``at``, through the stops of their columns.

    ``stops`` are those of ``permanent.stops``, column after column, an element's from ``first_stop`` on until ``tiles`` have
    left. x is padded (N, H', W', C), ``weight`` (channels, K).
    """
    depth = weight.shape[1] // len(taps_y)
    for i in range(len(at)):
        n, h, w, channel = at[i]
        total, partial, k, left, stop = np.int64(0), np.int64(0), 0, 0, first_stop[i]
        while left < tiles:
            for j in range(k, stops[stop, 0]):
                tap, c = divmod(j, depth)
                streamed = np.int64(x[n, h * stride[0] + taps_y[tap], w * stride[1] + taps_x[tap], first_channel[i] + c])
                partial += streamed * np.int64(weight[channel, j])
            k = stops[stop, 0]
            partial = np.int64(np.int32((partial & stops[stop, 1]) | stops[stop, 2]))
            if stops[stop, 3]:
                total += partial
                partial = np.int64(0)
                left += 1
            stop += 1
        out[i] = np.int32(total)


_WORN: weakref.WeakValueDictionary[tuple[int, str, str], Worn] = weakref.WeakValueDictionary()
_WEARING = threading.Lock()


def exact(network: Network, path: str = "auto", faults: FaultMap | None = None) -> Engine:
    """The engine of this very network on a chip, or on a sound array without ``faults``, the same for all who ask.

    See ``accelsim.engine.shared``. Raises ValueError as Engine does.
    """
    if faults is None:
        return shared(network, path)
    key = id(network), path, digest(faults)  # the engine holds the network: its id is nobody else's
    with _WEARING:
        engine = _WORN.get(key)
        if engine is None:
            engine = _WORN[key] = Worn(network, faults, path)
        return engine
