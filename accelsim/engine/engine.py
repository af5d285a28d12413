"""Runs the int8 network exactly, with and without faults (architecture.md, "Arithmetic" and "Faults").

Two paths give the same integers. ``vnni`` is for processors with AVX-512 VNNI: compiled tile kernels that keep int32
accumulators in cache (``accelsim.engine.kernels``). ``portable`` is torch's float convolution, which is exact while every
partial sum is an integer below 2^24 in float32 or 2^53 in float64; on a GPU it is the path ``cuda``. A path is used
only after it has equalled the reference on this machine.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt

from accelsim.engine import executions, kernels, layers, portable
from accelsim.engine.ahead import Ahead
from accelsim.engine.buffers import Buffers
from accelsim.engine.executions import Work
from accelsim.engine.packing import is_depthwise, pack, stored
from accelsim.engine.paths import DEVICE, choose
from accelsim.faults import Flips
from accelsim.int8.network import INPUT, Activation, Byte, Conv, Int8, Network
from accelsim.int8.walk import walk

Int64 = npt.NDArray[np.int64]
FlipsOf = Callable[[int], Sequence[Flips]]
"""The faults of a MAC layer's replicas, by its index."""
Each = Callable[[int, Sequence[Activation], int], None]
"""Gets (index of a MAC layer, its replicas of some images, the first of these images)."""


class Engine:
    """One network, ready to run, on as many threads as torch has (``torch.set_num_threads``), or cores where it is not loaded.

    ``path`` is ``auto`` (the first of ``vnni``, ``cuda``, ``portable`` that works here) or one of these; ``Engine.path``
    and ``Engine.reason`` tell which one runs and why. Safe to use from several threads at once. Raises ValueError if
    the path cannot run here, or if a layer's accumulators could leave int32.
    """

    def __init__(self, network: Network, path: str = "auto") -> None:
        self.network = network
        self.path, self.reason = choose(path)
        self._macs: dict[int, kernels.Packed] = {}
        self.threads = _threads()
        self._one = threading.Lock()
        self._pool = ThreadPoolExecutor(max(1, self.threads - 1), thread_name_prefix="engine")
        for index, layer in network.convs():
            # Weights count as -128 because flips can make them that.
            dtype = network.dtype_of(layer.inputs[0])
            largest = 128 * (128 if dtype == np.int8 else 255)
            bound = largest * layer.weight[0].size + int(np.abs(layer.bias.astype(np.int64)).max(initial=0))
            if bound >= 2**31:
                raise ValueError(f"layer {index} ({layer.name}): accumulators can reach {bound}, beyond int32")
            self._macs[index] = pack(layer, network.shape_of(layer.inputs[0]), dtype)

    def fault_free(self, index: int, operands: Sequence[Activation]) -> Activation:
        """Fault-free output (N, H, W, C), int8 or uint8, of layer ``index`` on its operands."""
        xs = self._check(index, operands)
        if index in self._macs:
            return self._replicas(index, xs[0], [_CLEAN])[0]
        y = self._output(index, len(xs[0]))
        self._parallel(len(y), lambda first, last: self._layer(index, [x[first:last] for x in xs], y[first:last]))
        return y

    def replicas(self, index: int, x: Activation, flips: Sequence[Flips]) -> list[Activation]:
        """Outputs of faulty executions of MAC layer ``index`` on one input, one for each ``flips``."""
        self.conv(index)
        (x,) = self._check(index, [x])
        return self._replicas(index, x, flips)

    def run(self, x: Int8, flips: FlipsOf | None = None, each: Each | None = None) -> list[Activation]:
        """Outputs of all layers, in order, for the quantised input x (N, H, W, C) int8.

        ``flips`` gives the faults of a MAC layer's replicas; the layers behind it see the first replica. None is
        fault-free. ``each`` gets the replicas as soon as they are there. Both are called from any thread: ``flips`` once
        a layer, ``each`` once a layer and thread.
        """
        _checked(x, self.network.input_shape, np.dtype(np.int8), "network input")
        x = np.ascontiguousarray(x)
        by_images = self.path == "vnni" and len(x) >= self.threads
        return self._run_images(x, flips, each) if by_images else self._run_layers(x, flips, each)

    def _run_layers(self, x: Int8, flips: FlipsOf | None, each: Each | None) -> list[Activation]:
        """All threads on one layer after the other."""
        values: dict[int, Activation] = {INPUT: x}
        for index, _, operands in walk(self.network, values, keep=True):
            if flips is None or index not in self._macs:
                values[index] = self.fault_free(index, operands)
                continue
            replicas = self.replicas(index, operands[0], flips(index))
            values[index] = replicas[0]
            if each is not None:
                each(index, replicas, 0)
        return [values[index] for index in range(len(self.network.layers))]

    def _run_images(self, x: Int8, flips: FlipsOf | None, each: Each | None) -> list[Activation]:
        """Each thread takes its images through the whole network: little to wait for in between."""
        outputs = [self._output(index, len(x)) for index in range(len(self.network.layers))]

        def prepare(index: int) -> tuple[Work, list[Activation]]:
            assert flips is not None
            layer = self.conv(index)
            (source,) = layer.inputs
            struck = flips(index)
            ys = [outputs[index], *(self._output(index, len(x)) for _ in struck[1:])]
            return executions.work(self._macs[index], layer, x if source == INPUT else outputs[source], struck, ys), ys

        faulty = Ahead(list(self._macs) if flips is not None else [], prepare, min(self.threads, len(x)))

        def images(first: int, last: int) -> None:
            values: dict[int, Activation] = {INPUT: x[first:last], **{index: y[first:last] for index, y in enumerate(outputs)}}
            for index, layer, operands in walk(self.network, values, keep=True):
                if flips is None or index not in self._macs:
                    self._layer(index, operands, values[index])
                    continue
                with faulty.of(index) as (work, ys):
                    pixels = layer.shape[0] * layer.shape[1]
                    work(first * pixels, last * pixels)
                    if each is not None:
                        each(index, [y[first:last] for y in ys], first)

        # Faulty runs go one by one, because their threads wait for one another and the pool may not hold those of two.
        with self._one if flips is not None else nullcontext():
            self._parallel(len(x), images)
        return outputs

    def elements(self, index: int, x: Activation, positions: Int64) -> Activation:
        """Fault-free outputs of MAC layer ``index`` at flat NHWC output positions (int64), by direct dot products."""
        layer = self.conv(index)
        (x,) = self._check(index, [x])
        size = len(x) * int(np.prod(layer.shape))
        if positions.size and (positions.min() < 0 or positions.max() >= size):
            raise ValueError(f"layer {index} ({layer.name}): positions must lie in 0..{size - 1}")
        y: Activation = np.empty(len(positions), layer.dtype)
        at = np.ascontiguousarray(positions, np.int64)
        kernels.elements(stored(layer, x), executions.address(x), len(x), at, y.view(np.int8))
        return y

    def conv(self, index: int) -> Conv:
        """The MAC layer at ``index``; raises ValueError if that layer is of another type."""
        layer = self.network.layers[index]
        if not isinstance(layer, Conv):
            raise ValueError(f"layer {index} ({layer.name}) is a {type(layer).__name__}; only MAC layers have replicas")
        return layer

    def _output(self, index: int, count: int) -> Activation:
        layer = self.network.layers[index]
        return _BUFFERS.take((count, *layer.shape), layer.dtype)

    def _check(self, index: int, operands: Sequence[Activation]) -> list[Activation]:
        layer = self.network.layers[index]
        if len(operands) != len(layer.inputs):
            raise ValueError(f"layer {index} ({layer.name}): takes {len(layer.inputs)} operands, got {len(operands)}")
        what = f"layer {index} ({layer.name})"
        return [
            _checked(x, self.network.shape_of(i), self.network.dtype_of(i), what)
            for x, i in zip(operands, layer.inputs, strict=True)
        ]

    def _parallel(self, count: int, work: Work, step: int = 1) -> None:
        """Give each thread a range of 0..count-1, cut at multiples of ``step``."""
        steps = -(-count // step)
        parts = max(1, min(self.threads, steps))
        edges = [min(count, steps * p // parts * step) for p in range(parts + 1)]
        others = [self._pool.submit(work, edges[p], edges[p + 1]) for p in range(1, parts)]
        try:
            work(0, edges[1])
        finally:
            wait(others)
        for other in others:
            other.result()

    def _replicas(self, index: int, x: Activation, flips: Sequence[Flips]) -> list[Activation]:
        layer, mac = self.conv(index), self._macs[index]
        if self.path != "vnni":
            return [portable.replica(layer, x, f, DEVICE[self.path]) for f in flips]
        h, w, _ = layer.shape
        ys = [self._output(index, len(x)) for _ in flips]
        step = w if is_depthwise(layer) else mac.tile
        self._parallel(len(x) * h * w, executions.work(mac, layer, x, flips, ys), step)
        return ys

    def _layer(self, index: int, xs: Sequence[Activation], y: Activation) -> None:
        """Fault-free layer into y on the calling thread, on the path ``vnni`` if it is a MAC layer."""
        layer = self.network.layers[index]
        if isinstance(layer, Conv):
            executions.call(self._macs[index], layer, xs[0], [_CLEAN], [y])(0, len(y) * layer.shape[0] * layer.shape[1])
        else:
            layers.into(layer, xs, y)


_SHARED: weakref.WeakValueDictionary[tuple[int, str], Engine] = weakref.WeakValueDictionary()
_SHARING = threading.Lock()
_CLEAN = Flips()
_BUFFERS = Buffers(idle_bytes=256 * 2**20)


def shared(network: Network, path: str = "auto") -> Engine:
    """The engine of this very network on ``path``, the same for all who ask for as long as one of them holds it.

    Packed weights are as large as the network. Raises ValueError as Engine does.
    """
    key = id(network), path  # the engine holds the network, so its id is nobody else's while the entry is here
    with _SHARING:
        engine = _SHARED.get(key)
        if engine is None:
            engine = _SHARED[key] = Engine(network, path)
        return engine


def keep_idle(nbytes: int) -> None:
    """Bound the memory of outputs that is kept to be used again, 256 MiB by default, in this process."""
    _BUFFERS.idle_bytes = nbytes


def _threads() -> int:
    """torch's number where it is loaded; else what it would take: OMP_NUM_THREADS, or the cores that we may use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text.isdecimal() and int(text) > 0:
        return int(text)
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _checked(x: Activation, shape: tuple[int, int, int], dtype: Byte, what: str) -> Activation:
    if x.dtype != dtype or x.ndim != 4 or x.shape[1:] != shape:
        raise ValueError(f"{what}: expected {dtype} of shape (N, {', '.join(map(str, shape))}), got {x.dtype} {x.shape}")
    if x.size >= 2**31:
        raise ValueError(f"{what}: a batch of {len(x)} has {x.size} activations, at most 2^31 - 1 are supported")
    return np.ascontiguousarray(x)
