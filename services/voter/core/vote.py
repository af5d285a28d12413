"""The vote over replicas of one layer's output: bitwise majority or median (paper section V.C, architecture.md, "The link").

One pass over memory: every replica is read once and the vote written once, so that voting costs what copying costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Activation
from services.scheme import Vote


@numba.njit(cache=True, nogil=True)
def _median3(a: Activation, b: Activation, c: Activation, out: Activation) -> None:
    for i in range(a.size):
        low, high = min(a[i], b[i]), max(a[i], b[i])
        out[i] = max(low, min(high, c[i]))


@numba.njit(cache=True, nogil=True)
def _median5(a: Activation, b: Activation, c: Activation, d: Activation, e: Activation, out: Activation) -> None:
    # The larger of two lows and the smaller of two highs leave the median of three in the middle.
    for i in range(a.size):
        low = max(min(a[i], b[i]), min(c[i], d[i]))
        high = min(max(a[i], b[i]), max(c[i], d[i]))
        first, second = min(low, high), max(low, high)
        out[i] = max(first, min(second, e[i]))


@numba.njit(cache=True, nogil=True)
def _median7(
    a: Activation, b: Activation, c: Activation, d: Activation, e: Activation, f: Activation, g: Activation, out: Activation
) -> None:
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
def _majority3(a: Activation, b: Activation, c: Activation, out: Activation) -> None:
    for i in range(a.size):
        out[i] = (a[i] & b[i]) | (c[i] & (a[i] | b[i]))


@numba.njit(cache=True, nogil=True)
def _majority5(a: Activation, b: Activation, c: Activation, d: Activation, e: Activation, out: Activation) -> None:
    # Two full adders: the bits' count is odd + 2 * (carry + carry2), and is 3 or more when two of the three are set.
    for i in range(a.size):
        odd = a[i] ^ b[i] ^ c[i]
        carry = (a[i] & b[i]) | (c[i] & (a[i] | b[i]))
        carry2 = (odd & d[i]) | (e[i] & (odd | d[i]))
        odd = odd ^ d[i] ^ e[i]
        out[i] = (carry & carry2) | (odd & (carry | carry2))


@numba.njit(cache=True, nogil=True)
def _majority7(
    a: Activation, b: Activation, c: Activation, d: Activation, e: Activation, f: Activation, g: Activation, out: Activation
) -> None:
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


_BYTES: Final = (np.int8, np.uint8)


def vote(replicas: Sequence[Activation], kind: Vote) -> Activation:
    """What most of 3, 5 or 7 replicas say: int8 or uint8 arrays of one shape in, a fresh array like them out.

    ``bitwise`` is the paper's majority of each bit; ``median`` is wrong less often (architecture.md, "The link").
    Raises ValueError on another kind or number of replicas, or where a dtype or a shape differs.
    """
    kernel = _KERNELS.get((kind, len(replicas)))
    if kernel is None:
        raise ValueError(f"vote: needs 3, 5 or 7 replicas, median or bitwise; got {len(replicas)} and {kind!r}")
    first = replicas[0]
    for i, replica in enumerate(replicas):
        if first.dtype not in _BYTES or replica.dtype != first.dtype or replica.shape != first.shape:
            raise ValueError(
                f"vote: replica {i} is {replica.dtype} of shape {replica.shape}, expected int8 or uint8, all alike, "
                f"of shape {first.shape}"
            )
    out = np.empty_like(first, order="C")
    kernel(*(np.ascontiguousarray(replica).reshape(-1) for replica in replicas), out.reshape(-1))
    return out


@numba.njit(cache=True, nogil=True)
def _first_open(a: Activation, b: Activation, positions: npt.NDArray[np.int64]) -> int:
    """The first place at which a and b differ that is not among the sorted positions; -1 if there is none."""
    start = 0
    for named in range(positions.size + 1):
        end = positions[named] if named < positions.size else a.size
        for i in range(start, end):
            if a[i] != b[i]:
                return i
        start = end + 1
    return -1


def settled_vote(
    replicas: Sequence[Activation], kind: Vote, positions: npt.NDArray[Any] | None, values: npt.NDArray[Any] | None
) -> Activation:
    """The vote with the referee's values (``edge_agent.core.referee``) in its place, in an array of its own.

    ``values`` (flat, of the replicas' dtype) are the fault-free outputs at the flat ``positions`` (integers, rising), or of
    the whole layer where there are none. Without values it is ``vote``. Two replicas cannot outvote one another: there
    values must be given wherever they differ. One cannot be voted on at all: there they must be the whole layer.

    Raises ValueError saying what does not fit, and what ``vote`` raises.
    """
    if values is None:
        if len(replicas) < 3:
            raise ValueError(f"vote: {len(replicas)} replicas cannot be voted on without the referee's values; send 3, 5 or 7")
        return vote(replicas, kind)
    first = replicas[0]
    size = first.size
    if positions is None:
        if values.dtype != first.dtype or values.shape != (size,):
            raise ValueError(f"vote: values {values.dtype} {values.shape} for a layer of {size} elements of {first.dtype}")
        return np.array(values.reshape(first.shape))
    if positions.dtype.kind != "i" or values.dtype != first.dtype or positions.shape != values.shape or positions.ndim != 1:
        raise ValueError(
            f"vote: positions {positions.dtype} {positions.shape} and values {values.dtype} {values.shape}; "
            f"expected integers and {first.dtype} of one length"
        )
    at = positions.astype(np.int64)
    if at.size and not (at[0] >= 0 and at[-1] < size and (at[1:] > at[:-1]).all()):
        raise ValueError(f"vote: positions must rise within 0..{size - 1}")
    voted = vote(replicas, kind) if len(replicas) > 2 else _agreed(replicas, at)
    voted.reshape(-1)[at] = values
    return voted


def _agreed(replicas: Sequence[Activation], positions: npt.NDArray[np.int64]) -> Activation:
    """A copy of what two replicas agree on. Raises ValueError where they differ elsewhere than at the positions."""
    if len(replicas) != 2:
        raise ValueError("vote: one replica needs the referee's values of the whole layer")
    first, second = replicas
    if first.dtype not in _BYTES or second.dtype != first.dtype or first.shape != second.shape:
        raise ValueError(
            f"vote: replicas are {first.dtype} {first.shape} and {second.dtype} {second.shape}, expected int8 or uint8 alike"
        )
    flat = [np.ascontiguousarray(replica).reshape(-1) for replica in replicas]
    place = _first_open(flat[0], flat[1], positions)
    if place >= 0:
        raise ValueError(
            f"vote: two replicas differ at {place}, where the referee gave no value; they cannot outvote one another"
        )
    return first.copy()
