"""The permanent faults of a device that both sides of the link know of and predict with (docs/chips.md)."""

from __future__ import annotations

from functools import lru_cache

from accelsim.faults import chip
from accelsim.faults.permanent import FaultMap


@lru_cache(maxsize=8)
def known_faults(packed: bytes, what: str) -> FaultMap | None:
    """The permanent faults that both sides of the link know of, from ``accelsim.faults.chip.packed``; none from no bytes.

    Raises ValueError, beginning with ``what``, for bytes that are no such map.
    """
    return chip.unpacked(packed, what) if packed else None
