"""The vote over replicas of one layer's output: bitwise majority or median (paper section V.C, design section 7).

One pass over memory: every replica is read once and the vote written once, so that voting costs what copying costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import numba
import numpy as np

from accelsim.network import Int8

Kind = Literal["median", "bitwise"]


@numba.njit(cache=True, nogil=True)
def _median3(a: Int8, b: Int8, c: Int8, out: Int8) -> None:
    for i in range(a.size):
        low, high = min(a[i], b[i]), max(a[i], b[i])
        out[i] = max(low, min(high, c[i]))


@numba.njit(cache=True, nogil=True)
def _median5(a: Int8, b: Int8, c: Int8, d: Int8, e: Int8, out: Int8) -> None:
    # The larger of two lows and the smaller of two highs leave the median of three in the middle.
    for i in range(a.size):
        low = max(min(a[i], b[i]), min(c[i], d[i]))
        high = min(max(a[i], b[i]), max(c[i], d[i]))
        first, second = min(low, high), max(low, high)
        out[i] = max(first, min(second, e[i]))


@numba.njit(cache=True, nogil=True)
def _median7(a: Int8, b: Int8, c: Int8, d: Int8, e: Int8, f: Int8, g: Int8, out: Int8) -> None:
    # Drop the smallest and the largest of the 5 first, then of what is left and the next one, until three are left.
    for i in range(a.size):
        v0, v1, v2, v3, v4 = a[i], b[i], c[i], d[i], e[i]
        v0, v1 = min(v0, v1), max(v0, v1)
        v2, v3 = min(v2, v3), max(v2, v3)
        v0, v2 = min(v0, v2), max(v0, v2)
        v1, v3 = min(v1, v3), max(v1, v3)
        # v0 is the least of four, v3 the greatest; against the fifth the extremes of five fall out.
        v4 = min(v3, max(v0, v4))
        v5 = f[i]
        v1, v2 = min(v1, v2), max(v1, v2)
        v4, v5 = min(v4, v5), max(v4, v5)
        v4, v2, v1 = max(v1, v4), min(v2, v5), g[i]
        low, high = min(v4, v2), max(v4, v2)
        out[i] = max(low, min(high, v1))


@numba.njit(cache=True, nogil=True)
def _majority3(a: Int8, b: Int8, c: Int8, out: Int8) -> None:
    for i in range(a.size):
        out[i] = (a[i] & b[i]) | (c[i] & (a[i] | b[i]))


@numba.njit(cache=True, nogil=True)
def _majority5(a: Int8, b: Int8, c: Int8, d: Int8, e: Int8, out: Int8) -> None:
    # Two full adders: the bits' count is odd + 2 * (carry + carry2), and is 3 or more when two of the three are set.
    for i in range(a.size):
        odd = a[i] ^ b[i] ^ c[i]
        carry = (a[i] & b[i]) | (c[i] & (a[i] | b[i]))
        carry2 = (odd & d[i]) | (e[i] & (odd | d[i]))
        odd = odd ^ d[i] ^ e[i]
        out[i] = (carry & carry2) | (odd & (carry | carry2))


@numba.njit(cache=True, nogil=True)
def _majority7(a: Int8, b: Int8, c: Int8, d: Int8, e: Int8, f: Int8, g: Int8, out: Int8) -> None:
    # Three full adders: the count is odd + 2 * (three carries), and is 4 or more when two carries are set.
    for i in range(a.size):
        odd1 = a[i] ^ b[i] ^ c[i]
        carry1 = (a[i] & b[i]) | (c[i] & (a[i] | b[i]))
        odd2 = d[i] ^ e[i] ^ f[i]
        carry2 = (d[i] & e[i]) | (f[i] & (d[i] | e[i]))
        carry3 = (odd1 & odd2) | (g[i] & (odd1 | odd2))
        out[i] = (carry1 & carry2) | (carry3 & (carry1 | carry2))


_KERNELS: Final[dict[tuple[str, int], Callable[..., None]]] = {
    ("median", 3): _median3,
    ("median", 5): _median5,
    ("median", 7): _median7,
    ("bitwise", 3): _majority3,
    ("bitwise", 5): _majority5,
    ("bitwise", 7): _majority7,
}


def vote(replicas: Sequence[Int8], kind: Kind) -> Int8:
    """What most of 3, 5 or 7 replicas say: int8 arrays of one shape in, a fresh array of that shape out.

    ``bitwise`` is the paper's majority of each bit; ``median`` is wrong less often (design section 7).
    Raises ValueError on another kind or number of replicas, or where a dtype or a shape differs.
    """
    kernel = _KERNELS.get((kind, len(replicas)))
    if kernel is None:
        raise ValueError(f"vote: needs 3, 5 or 7 replicas, median or bitwise; got {len(replicas)} and {kind!r}")
    first = replicas[0]
    for i, replica in enumerate(replicas):
        if replica.dtype != np.int8 or replica.shape != first.shape:
            raise ValueError(
                f"vote: replica {i} is {replica.dtype} of shape {replica.shape}, expected int8 of shape {first.shape}"
            )
    out = np.empty(first.shape, np.int8)
    kernel(*(np.ascontiguousarray(replica).reshape(-1) for replica in replicas), out.reshape(-1))
    return out
