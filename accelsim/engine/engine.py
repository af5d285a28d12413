"""Runs the int8 network exactly, with and without faults (architecture.md, "Arithmetic" and "Faults").

Two paths give the same integers. ``vnni`` is for processors with AVX-512 VNNI: compiled tile kernels that keep int32
accumulators in cache (``accelsim.engine.kernels``). ``portable`` is torch's float convolution, which is exact while every
partial sum is an integer below 2^24 in float32 or 2^53 in float64; on a GPU it is the path ``cuda``. A path is used
only after it has equalled the reference on this machine.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from accelsim.engine import kernels, portable, reference, vnni
from accelsim.engine.buffers import Buffers
from accelsim.faults import Flips, Key, Rates, draw
from accelsim.int8.network import (
    INPUT,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Float32,
    Int8,
    Int32,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Slice,
    Table,
)

Int64 = npt.NDArray[np.int64]
_Number = TypeVar("_Number", np.int32, np.float32)
Work = Callable[[int, int], None]
"""Does a range first..last-1 of equal pieces of a layer."""


@dataclass(frozen=True, slots=True, eq=False)
class _Mac:
    """A MAC layer packed for the kernels."""

    geometry: Int64
    packed: Int8 | Int32
    start: Int32
    multiplier: Float32
    depthwise: bool


class Engine:
    """One network, ready to run, on as many threads as torch has (``torch.set_num_threads``), or cores where it is not loaded.

    ``path`` is ``auto`` (the first of ``vnni``, ``cuda``, ``portable`` that works here) or one of these; ``Engine.path``
    and ``Engine.reason`` tell which one runs and why. Safe to use from several threads at once. Raises ValueError if
    the path cannot run here, or if a layer's accumulators could leave int32.
    """

    def __init__(self, network: Network, path: str = "auto") -> None:
        self.network = network
        self.path, self.reason = choose(path)
        self._macs: dict[int, _Mac] = {}
        self.threads = _threads()
        self._one = threading.Lock()
        self._pool = ThreadPoolExecutor(max(1, self.threads - 1), thread_name_prefix="engine")
        for index, layer in network.convs():
            # Weights count as -128 because flips can make them that.
            bound = 128 * 128 * layer.weight[0].size + int(np.abs(layer.bias.astype(np.int64)).max(initial=0))
            if bound >= 2**31:
                raise ValueError(f"layer {index} ({layer.name}): accumulators can reach {bound}, beyond int32")
            self._macs[index] = _pack(layer, network.shape_of(layer.inputs[0]))

    def fault_free(self, index: int, operands: Sequence[Int8]) -> Int8:
        """Fault-free output (N, H, W, C) int8 of layer ``index`` on its operands."""
        xs = self._check(index, operands)
        if index in self._macs and self.path == "vnni":
            return self.replicas(index, xs[0], [_CLEAN])[0]
        y = _BUFFERS.take((len(xs[0]), *self.network.layers[index].shape))
        if index in self._macs:
            self._layer(index, xs, y)
            return y
        self._parallel(len(y), lambda first, last: self._layer(index, [x[first:last] for x in xs], y[first:last]))
        return y

    def run(
        self,
        x: Int8,
        flips: Callable[[int], Sequence[Flips]] | None = None,
        each: Callable[[int, Sequence[Int8], int], None] | None = None,
    ) -> list[Int8]:
        """Outputs of all layers, in order, for the quantised input x (N, H, W, C) int8.

        ``flips`` gives the faults of a MAC layer's replicas by its index; the layers behind it see the first replica.
        None is fault-free. ``each(index, replicas, first)`` gets a MAC layer's replicas of images ``first`` and on, as
        soon as they are there. Both are called from any thread: ``flips`` once a layer, ``each`` once a layer and thread.
        """
        x = _checked(x, self.network.input_shape, "network input")
        layers = self.network.layers
        if self.path != "vnni" or len(x) < self.threads:
            outputs: list[Int8] = []
            for index, layer in enumerate(layers):
                operands = [x if i == INPUT else outputs[i] for i in layer.inputs]
                if index in self._macs and flips is not None:
                    replicas = self.replicas(index, operands[0], flips(index))
                    outputs.append(replicas[0])
                    if each is not None:
                        each(index, replicas, 0)
                else:
                    outputs.append(self.fault_free(index, operands))
            return outputs
        outputs = [_BUFFERS.take((len(x), *layer.shape)) for layer in layers]

        def prepare(index: int) -> tuple[Work, list[Int8]]:
            assert flips is not None
            layer = self.conv(index)
            (source,) = layer.inputs
            struck = flips(index)
            ys = [outputs[index], *(_BUFFERS.take(outputs[index].shape) for _ in struck[1:])]
            return _work(self._macs[index], layer, x if source == INPUT else outputs[source], struck, ys), ys

        faulty = _Ahead(list(self._macs) if flips is not None else [], prepare, min(self.threads, len(x)))

        def images(first: int, last: int) -> None:
            parts = [y[first:last] for y in outputs]
            for index, layer in enumerate(layers):
                if index not in self._macs or flips is None:
                    self._layer(index, [x[first:last] if i == INPUT else parts[i] for i in layer.inputs], parts[index])
                    continue
                with faulty.of(index) as (work, ys):
                    pixels = layer.shape[0] * layer.shape[1]
                    work(first * pixels, last * pixels)
                    if each is not None:
                        each(index, [y[first:last] for y in ys], first)

        # A thread takes its images through the whole network: little to wait for in between. Faulty runs go one by one,
        # because their threads wait for one another and the pool may not hold those of two.
        with self._one if flips is not None else nullcontext():
            self._parallel(len(x), images)
        return outputs

    def replicas(self, index: int, x: Int8, flips: Sequence[Flips]) -> list[Int8]:
        """Outputs of faulty executions of MAC layer ``index`` on one input, one for each ``flips``."""
        layer = self.conv(index)
        (x,) = self._check(index, [x])
        if self.path != "vnni":
            return [portable.replica(layer, x, f, _DEVICE[self.path]) for f in flips]
        mac = self._macs[index]
        h, w, _ = layer.shape
        ys = [_BUFFERS.take((len(x), h, w, layer.shape[2])) for _ in flips]
        step = w if mac.depthwise else int(mac.geometry[kernels.TILE])
        self._parallel(len(x) * h * w, _work(mac, layer, x, flips, ys), step)
        return ys

    def elements(self, index: int, x: Int8, positions: Int64) -> Int8:
        """Golden outputs of MAC layer ``index`` at flat NHWC output positions (int64), by direct dot products, int8."""
        layer = self.conv(index)
        (x,) = self._check(index, [x])
        size = len(x) * int(np.prod(layer.shape))
        if positions.size and (positions.min() < 0 or positions.max() >= size):
            raise ValueError(f"layer {index} ({layer.name}): positions must lie in 0..{size - 1}")
        y = np.empty(len(positions), np.int8)
        geometry = _sized(self._macs[index].geometry, len(x))
        at = np.ascontiguousarray(positions, np.int64)
        kernels.elements(_address(x), geometry, layer.weight, layer.bias, layer.multiplier, at, y)
        return y

    def conv(self, index: int) -> Conv:
        """The MAC layer at ``index``; raises ValueError if that layer is of another type."""
        layer = self.network.layers[index]
        if not isinstance(layer, Conv):
            raise ValueError(f"layer {index} ({layer.name}) is a {type(layer).__name__}; only MAC layers have replicas")
        return layer

    def _check(self, index: int, operands: Sequence[Int8]) -> list[Int8]:
        layer = self.network.layers[index]
        if len(operands) != len(layer.inputs):
            raise ValueError(f"layer {index} ({layer.name}): takes {len(layer.inputs)} operands, got {len(operands)}")
        what = f"layer {index} ({layer.name})"
        return [_checked(x, self.network.shape_of(i), what) for x, i in zip(operands, layer.inputs, strict=True)]

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

    def _layer(self, index: int, xs: Sequence[Int8], y: Int8) -> None:
        """Fault-free layer into y on the calling thread."""
        layer = self.network.layers[index]
        n = len(y)
        a = _address(xs[0])
        if isinstance(layer, Conv) and self.path != "vnni":
            y[...] = portable.replica(layer, xs[0], _CLEAN, _DEVICE[self.path])
        elif isinstance(layer, Conv):
            _call(self._macs[index], layer, xs[0], [_CLEAN], [y])(0, n * layer.shape[0] * layer.shape[1])
        elif isinstance(layer, Add) and len(xs) == 2:
            ma, mb = (np.float32(m) for m in layer.multipliers)
            kernels.add(a, _address(xs[1]), ma, mb, layer.low, layer.high, _address(y), y.size)
        elif isinstance(layer, Concat):
            c, offset = layer.shape[2], 0
            for x, m in zip(xs, layer.multipliers, strict=True):
                pixels, width = x.size // x.shape[3], x.shape[3]
                out = _address(y)
                kernels.scale(_address(x), np.float32(m), layer.low, layer.high, out, pixels, width, c, offset)
                offset += width
        elif isinstance(layer, Mul):
            h, w, c = layer.shape
            broadcast = xs[1].shape[1:3] != (h, w)
            factor = np.float32(layer.multiplier)
            b = _address(xs[1])
            kernels.multiply(a, b, factor, layer.low, layer.high, _address(y), n, h * w, c, broadcast)
        elif isinstance(layer, MaxPool):
            kernels.max_pool(a, _pool_geometry(layer, xs[0].shape), _address(y))
        elif isinstance(layer, MeanPool):
            kernels.mean_pool(a, _pool_geometry(layer, xs[0].shape), np.float32(layer.multiplier), _address(y))
        elif isinstance(layer, Table):
            kernels.look_up(a, layer.table, _address(y), y.size)
        elif isinstance(layer, Channels):
            c = xs[0].shape[3]
            kernels.move_channels(a, layer.order, _address(y), xs[0].size // c, c)
        else:
            assert isinstance(layer, Flatten | Slice | Add)
            y[...] = reference.layer(layer, xs)


PATHS = ("vnni", "cuda", "portable")
_SHARED: weakref.WeakValueDictionary[tuple[int, str], Engine] = weakref.WeakValueDictionary()
_SHARING = threading.Lock()
_CLEAN = Flips()
_BUFFERS = Buffers(idle_bytes=256 * 2**20)
_DEVICE = {"portable": "cpu", "cuda": "cuda"}


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


def choose(path: str) -> tuple[str, str]:
    """The path that ``Engine(network, path)`` takes, and why. Raises ValueError if it cannot run here."""
    if path != "auto" and path not in PATHS:
        raise ValueError(f"engine path {path!r}: expected auto, {', '.join(PATHS)}")
    skipped: list[str] = []
    for name in PATHS if path == "auto" else (path,):
        problem = check(name)
        if not problem:
            why = "equals the reference on this machine"
            return name, f"{why}; not {', '.join(skipped)}" if skipped else why
        skipped.append(f"{name} ({problem})")
    raise ValueError(f"engine path {path!r} cannot run here: {'; '.join(skipped)}")


def warm() -> None:
    """Compile every kernel now, or load it from Numba's cache (``NUMBA_CACHE_DIR``), instead of at the first batch.

    About 15 s where nothing is cached, half a second otherwise.
    """
    path, _ = choose("auto")
    shape = (2, 2, 2)
    here: dict[str, Any] = {"name": "warm", "inputs": (INPUT,), "shape": shape, "scale": 1.0}
    both = here | {"inputs": (INPUT, INPUT)}
    window: dict[str, Any] = {"kernel": (1, 1), "stride": (1, 1)}
    conv = Conv(
        **here, weight=np.zeros((2, 2, 1, 1), np.int8), bias=np.zeros(2, np.int32), weight_scale=np.ones(2, np.float32),
        multiplier=np.ones(2, np.float32),
    )  # fmt: skip
    layers = (
        conv, Add(**both, multipliers=(1.0, 1.0)), Concat(**both | {"shape": (2, 2, 4)}, multipliers=(1.0, 0.5)),
        MaxPool(**here, **window), MeanPool(**here, **window, multiplier=1.0), Mul(**both, multiplier=1.0),
        Table(**here, table=np.zeros(256, np.int8), slope=np.zeros(256, np.float32)),
        Channels(**here, order=np.arange(2, dtype=np.int32)),
    )  # fmt: skip
    table = np.zeros((2, 256), np.int8)
    network = Network(name="warm", input_shape=shape, input_scale=1.0, input_table=table, layers=layers)
    x = np.zeros((1, *shape), np.int8)
    engine = Engine(network, path)
    engine.run(x)
    engine.elements(0, x, np.zeros(1, np.int64))


def probe() -> list[tuple[str, bool, str]]:
    """(path, whether it can run here, why) for each path, the preferred one first; for ``r2f doctor``."""
    return [(name, not check(name), check(name) or "equals the reference on this machine") for name in PATHS]


@functools.cache
def check(path: str) -> str:
    """Hold a path against the reference on this machine's processor, once a process: why it cannot run, or nothing."""
    if path == "vnni" and vnni.missing():
        return vnni.missing()
    if path == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "torch sees no GPU"
    random = np.random.default_rng(0)
    for case, (h, c, o, size, stride, padding, groups) in enumerate(_CASES):
        for low in (-128, 127):
            # Random operands, and the largest products there are.
            shape = (o, c // groups, size, size)
            side = (h + 2 * padding - size) // stride + 1
            layer = Conv(
                name=f"check {case}",
                inputs=(INPUT,),
                shape=(side, side, o),
                scale=1.0,
                weight=random.integers(-128, low, shape, np.int8, endpoint=True),
                bias=random.integers(-(2**16), 2**16, o, np.int32),
                weight_scale=np.ones(o, np.float32),
                multiplier=(random.random(o) / (16 * c // groups * size * size)).astype(np.float32),
                stride=(stride, stride),
                padding=(padding, padding),
                groups=groups,
            )
            x = random.integers(-128, low, (2, h, h, c), np.int8, endpoint=True)
            flips = [
                draw(_CHECK_RATES, Key(case, "check", 0, 0, r), inputs=x.size, weights=layer.weight.size,
                     outputs=2 * side * side * o)
                for r in range(3)
            ]  # fmt: skip
            expected = [reference.replica(layer, x, f) for f in flips]
            if path == "vnni":
                mac = _pack(layer, x.shape[1:])
                actual = [np.empty_like(expected[0]) for _ in range(4)]
                for call in (_call(mac, layer, x, flips, actual[:3]), _call(mac, layer, x, flips[:1], actual[3:])):
                    call(0, 2 * side * side)
            else:
                actual = [portable.replica(layer, x, f, _DEVICE[path]) for f in flips]
            if not all(np.array_equal(y, e) for y, e in zip(actual, expected + expected[:1])):  # noqa: B905
                return f"differs from the reference on a {size}x{size} convolution, {c} to {o} channels"
    return ""


# (side, channels in, out, kernel, stride, padding, groups); the third reaches accumulators beyond 2^24.
_CASES = (
    (9, 3, 24, 3, 2, 1, 1),
    (7, 20, 72, 1, 1, 0, 1),
    (4, 1040, 33, 1, 1, 0, 1),
    (8, 40, 40, 3, 1, 1, 40),
    (6, 8, 6, 3, 1, 1, 2),
)
_CHECK_RATES = Rates(1e-2, 1e-2, 1e-3, 1e-2)


def _address(x: Int8) -> int:
    return int(x.__array_interface__["data"][0])


def _checked(x: Int8, shape: tuple[int, int, int], what: str) -> Int8:
    if x.dtype != np.int8 or x.ndim != 4 or x.shape[1:] != shape:
        raise ValueError(f"{what}: expected int8 of shape (N, {', '.join(map(str, shape))}), got {x.dtype} {x.shape}")
    if x.size >= 2**31:
        raise ValueError(f"{what}: a batch of {len(x)} has {x.size} activations, at most 2^31 - 1 are supported")
    return np.ascontiguousarray(x)


def _sized(geometry: Int64, n: int) -> Int64:
    geometry = geometry.copy()
    geometry[kernels.N] = n
    return geometry


def _pool_geometry(layer: MaxPool | MeanPool, shape: tuple[int, ...]) -> Int64:
    dilation = layer.dilation if isinstance(layer, MaxPool) else (1, 1)
    low, high = (layer.low, layer.high) if isinstance(layer, MeanPool) else (-128, 127)
    numbers = [*shape, *layer.shape, *layer.kernel, *layer.stride, *layer.padding, *dilation, 1, low, high, 0]
    return np.array(numbers, np.int64)


def _pack(layer: Conv, shape: tuple[int, int, int]) -> _Mac:
    o, i, r, s = layer.weight.shape
    g = layer.groups
    blocks = -(-o // g // vnni.LANES)
    depthwise = i == 1 and g == o and blocks * g > 0 and g == shape[2] and g > 1
    if depthwise:
        blocks = -(-o // vnni.LANES)
    groups = 1 if depthwise else g
    quads = -(-(i * r * s) // 4)
    tile = _tile(4 * quads, 16 * blocks)
    numbers = [0, *shape, *layer.shape, r, s, *layer.stride, *layer.padding, *layer.dilation]
    geometry = np.array([*numbers, groups, layer.low, layer.high, tile], np.int64)

    def padded(values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        rows = np.zeros((groups, blocks * vnni.LANES), values.dtype)
        rows[:, : o // groups] = values.reshape(groups, -1)
        return rows

    multiplier = padded(layer.multiplier)
    if depthwise:
        taps = np.zeros((r * s, blocks * vnni.LANES), np.int32)
        # The kernel multiplies pairs of int16; the upper one of the weights is zero.
        taps[:, :o] = layer.weight.reshape(o, r * s).T.astype(np.int32) & 0xFFFF
        return _Mac(geometry, taps, padded(layer.bias)[0], multiplier[0], True)
    # (g, o, i, r, s) -> (g, block, quad, 16, 4) with k = (r, s, i)
    k = np.zeros((g, blocks * vnni.LANES, 4 * quads), np.int8)
    k[:, : o // g, : r * s * i] = layer.weight.reshape(g, o // g, i, r, s).transpose(0, 1, 3, 4, 2).reshape(g, o // g, -1)
    packed = np.ascontiguousarray(k.reshape(g, blocks, vnni.LANES, quads, 4).transpose(0, 1, 3, 2, 4))
    start = padded(layer.bias) - 128 * k.sum(axis=2, dtype=np.int32)
    return _Mac(geometry, packed, start, multiplier, False)


def _tile(width: int, stride: int) -> int:
    """Output pixels whose operands and accumulators fit the second-level cache beside the weights."""
    return max(1, min(8, 192 * 1024 // (24 * (width + 8 * stride)))) * 24


class _Ahead:
    """What threads need for each layer: prepared by one of them a layer ahead, kept until the last has used it.

    No thread gets more than a layer ahead of another, so that only a few layers' replicas are in memory.
    """

    def __init__(self, indices: Sequence[int], prepare: Callable[[int], tuple[Work, list[Int8]]], users: int) -> None:
        self._prepare = prepare
        self._next = dict(itertools.pairwise(indices))
        self._locks = {index: threading.Lock() for index in indices}
        self._made: dict[int, tuple[Work, list[Int8]]] = {}
        self._left = dict.fromkeys(indices, users)
        self._done = threading.Condition()
        self._failed: BaseException | None = None

    @contextmanager
    def of(self, index: int) -> Iterator[tuple[Work, list[Int8]]]:
        try:
            yield self._get(index)
        except BaseException as error:
            with self._done:
                self._failed = self._failed or error
                self._done.notify_all()
            raise
        with self._done:
            self._left[index] -= 1
            if not self._left[index]:
                del self._made[index]
                self._done.notify_all()

    def _get(self, index: int) -> tuple[Work, list[Int8]]:
        with self._done:
            self._done.wait_for(lambda: self._failed is not None or sum(made < index for made in list(self._made)) <= 1)
            if self._failed:
                raise RuntimeError("engine: another thread of this run failed") from self._failed
        with self._locks[index]:
            if index not in self._made:
                self._made[index] = self._prepare(index)
            made = self._made[index]
        following = self._next.get(index)
        # Not waiting: if it is locked, somebody is at it already.
        if following is not None and self._locks[following].acquire(blocking=False):
            try:
                if following not in self._made and self._left[following]:
                    self._made[following] = self._prepare(following)
            finally:
                self._locks[following].release()
        return made


def _work(mac: _Mac, layer: Conv, x: Int8, flips: Sequence[Flips], ys: Sequence[Int8]) -> Work:
    """Executions of a MAC layer, one for each of ``flips``, into ys.

    One on its own has its flips in the operands, so that it costs what a fault-free one does; several are sparse
    corrections of the golden accumulators, but for those with so many flips that the operands are cheaper.
    """
    sparse = [r for r, f in enumerate(flips) if len(flips) > 1 and _sparse_is_cheaper(layer, x.shape, f)]
    groups = ([sparse] if sparse else []) + [[r] for r in range(len(flips)) if r not in sparse]
    calls = [_call(mac, layer, x, [flips[r] for r in group], [ys[r] for r in group]) for group in groups]

    def work(first: int, last: int) -> None:
        for call in calls:
            call(first, last)

    return work


def _call(mac: _Mac, layer: Conv, x: Int8, flips: Sequence[Flips], ys: Sequence[Int8]) -> Work:
    """The kernel with everything but the range of output pixels."""
    sites: list[Int64] = []
    for positions in ([f.input for f in flips], [f.accumulator for f in flips], [f.output for f in flips]):
        at = np.zeros(len(flips) + 1, np.int64)
        np.cumsum([len(p) for p in positions], out=at[1:])
        sites += [np.concatenate(positions) if len(positions) > 1 else positions[0], at]
    inputs, input_at, *rest = sites
    n, h, w, c = x.shape
    row_at = np.zeros((len(flips), n * h + 1), np.int64)
    columns, channels = np.empty(len(inputs), np.int32), np.empty(len(inputs), np.int32)
    for r in range(len(flips) if len(inputs) else 0):
        part = slice(input_at[r], input_at[r + 1])
        kernels.locate(inputs[part], w, c, input_at[r], row_at[r], columns[part], channels[part])
    located = inputs, row_at, columns, channels
    to = np.array([_address(y) for y in ys], np.int64)
    source, geometry = _address(x), _sized(mac.geometry, len(x))
    groups = 1 if mac.depthwise else layer.groups
    weights = [_weight_flips(layer, f, groups) for f in flips]
    if mac.depthwise:
        weight_at = np.zeros(len(flips) + 1, np.int64)
        np.cumsum([len(outs) for outs, _, _, _ in weights], out=weight_at[1:])
        outs, taps, deltas = (np.concatenate([w[part] for w in weights]) for part in range(3))
        return lambda first, last: kernels.depthwise(
            source, geometry, mac.packed, mac.start, mac.multiplier, *located, outs, taps, deltas,
            weight_at, *rest, to, first, last,
        )  # fmt: skip
    packed, start = mac.packed, mac.start
    dense = len(flips) == 1
    if dense and len(flips[0].weight):
        packed, start = packed.copy(), start.copy()
        kernels.patch_weights(packed, start, *weights[0])
    blocks = packed.shape[1]
    flipped = 0 if dense else sum(len(outs) for outs, _, _, _ in weights)
    changes = np.zeros((2 * flipped, vnni.LANES, 4), np.int8)
    quad_at = np.empty(2 * flipped, np.int64)
    block_at = np.zeros((len(flips), groups, blocks + 1), np.int64)
    shifts = np.zeros((len(flips), groups, blocks * vnni.LANES), np.int32)
    if flipped:
        n = 0
        for r, replica in enumerate(weights):
            count = kernels.weight_quads(*replica, changes[n:], quad_at[n:], block_at[r], shifts[r])
            block_at[r] += n
            n += count
    return lambda first, last: kernels.conv(
        source, geometry, packed, start, mac.multiplier, dense, *located, changes, quad_at, block_at, shifts,
        *rest, to, first, last,
    )  # fmt: skip


def _weight_flips(layer: Conv, flips: Flips, groups: int) -> tuple[Int32, Int32, Int32, Int64]:
    """(channel in its group, column, what is added) of each weight flip, and where each group's begin."""
    outs, columns, deltas = (np.empty(len(flips.weight), np.int32) for _ in range(3))
    starts = np.zeros(groups + 1, np.int64)
    if len(flips.weight):
        kernels.weight_deltas(layer.weight, flips.weight, outs, columns, deltas, starts, groups)
    return outs, columns, deltas, starts


def _sparse_is_cheaper(layer: Conv, shape: tuple[int, ...], flips: Flips) -> bool:
    o, _, r, s = layer.weight.shape
    pixels = shape[0] * layer.shape[0] * layer.shape[1]
    dense = pixels * layer.weight.size / 64
    touched = len(flips.input) * r * s / (layer.stride[0] * layer.stride[1])
    if layer.weight.shape[1] == 1 and layer.groups == shape[3] and layer.groups == o:
        return True
    sparse = touched * (20 + o / layer.groups / 8) + len(flips.weight) * pixels
    return bool(sparse < dense)
