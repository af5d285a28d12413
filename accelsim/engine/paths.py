"""The engine's paths, and the proof that each must give on this machine before it is taken."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from accelsim.engine import executions, portable, reference, vnni
from accelsim.engine.packing import pack
from accelsim.faults import Flips, Key, Rates, draw
from accelsim.int8.network import INPUT, Activation, Conv

PATHS = ("vnni", "cuda", "portable")
"""The preferred one first."""
DEVICE = {"portable": "cpu", "cuda": "cuda"}
"""torch's device of the paths that run on torch."""
_EQUALS = "equals the reference on this machine"


def choose(path: str) -> tuple[str, str]:
    """The path that ``Engine(network, path)`` takes, and why. Raises ValueError if it cannot run here."""
    if path != "auto" and path not in PATHS:
        raise ValueError(f"engine path {path!r}: expected auto, {', '.join(PATHS)}")
    skipped: list[str] = []
    for name in PATHS if path == "auto" else (path,):
        problem = check(name)
        if not problem:
            return name, f"{_EQUALS}; not {', '.join(skipped)}" if skipped else _EQUALS
        skipped.append(f"{name} ({problem})")
    raise ValueError(f"engine path {path!r} cannot run here: {'; '.join(skipped)}")


def probe() -> list[tuple[str, bool, str]]:
    """(path, whether it can run here, why) for each path, the preferred one first; for ``r2f doctor``."""
    return [(name, not check(name), check(name) or _EQUALS) for name in PATHS]


@functools.cache
def check(path: str) -> str:
    """Why a path cannot run here, or nothing: it is held against the reference on this processor, once a process."""
    if path == "vnni":
        return vnni.missing() or _differs(_by_kernels)
    if path == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "torch sees no GPU"
    return _differs(lambda layer, x, flips: [portable.replica(layer, x, f, DEVICE[path]) for f in flips])


def _by_kernels(layer: Conv, x: Activation, flips: Sequence[Flips]) -> list[Activation]:
    """All replicas together, so sparse, and the first of them once more on its own, so dense."""
    mac = pack(layer, x.shape[1:], x.dtype)
    ys = [np.empty((len(x), *layer.shape), layer.dtype) for _ in range(len(flips) + 1)]
    for call in (executions.call(mac, layer, x, flips, ys[:-1]), executions.call(mac, layer, x, flips[:1], ys[-1:])):
        call(0, len(x) * layer.shape[0] * layer.shape[1])
    return ys


def _differs(replicas: Callable[[Conv, Activation, Sequence[Flips]], list[Activation]]) -> str:
    random = np.random.default_rng(0)
    for case, (h, c, o, size, stride, padding, groups) in enumerate(_CASES):
        for low, signed in itertools.product((-128, 127), (True, False)):
            # Random operands, and the largest products there are; of both dtypes, to both.
            to_signed = signed == (case % 2 == 0)
            side = (h + 2 * padding - size) // stride + 1
            layer = Conv(
                name=f"check {case}",
                inputs=(INPUT,),
                shape=(side, side, o),
                scale=1.0,
                signed=to_signed,
                low=-128 if to_signed else 0,
                high=random.integers(100, 127 if to_signed else 255, o, np.int32, endpoint=True),
                weight=random.integers(-128, low, (o, c // groups, size, size), np.int8, endpoint=True),
                bias=random.integers(-(2**16), 2**16, o, np.int32),
                weight_scale=np.ones(o, np.float32),
                multiplier=(random.random(o) / (16 * c // groups * size * size)).astype(np.float32),
                stride=(stride, stride),
                padding=(padding, padding),
                groups=groups,
            )
            operands = random.integers(-128, low, (2, h, h, c), np.int8, endpoint=True)
            x: Activation = operands if signed else operands.view(np.uint8)
            keys = [Key(case, "check", 0, 0, replica) for replica in range(3)]
            outputs = 2 * side * side * o
            flips = [draw(_RATES, key, inputs=x.size, weights=layer.weight.size, outputs=outputs) for key in keys]
            expected = [reference.replica(layer, x, f) for f in flips]
            actual = replicas(layer, x, flips)
            if not all(np.array_equal(y, expected[r % len(expected)]) for r, y in enumerate(actual)):
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
_RATES = Rates(1e-2, 1e-2, 1e-3, 1e-2)
