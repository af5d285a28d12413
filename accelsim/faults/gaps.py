"""Positions of flips from the gaps between them, in compiled code: in NumPy's small steps it takes longer than the draw."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt


@numba.njit(cache=True, nogil=True)
def place(gaps: npt.NDArray[np.float64], step: float, bits: int, last: int, positions: npt.NDArray[np.int64]) -> int:
    """Number of positions behind ``last`` and below ``bits``, which go into ``positions`` (int64, of the length of ``gaps``).

    ``gaps`` are exponential with mean 1, ``step`` makes them those between flips. There are fewer than gaps where the tensor
    ends.
    """
    at = np.int64(last)
    for i in range(gaps.size):
        at += np.int64(min(gaps[i] * step, float(bits))) + 1
        if at >= bits:
            return i
        positions[i] = at
    return gaps.size
