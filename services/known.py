"""The permanent faults of a device that both sides of the link know of and predict with (docs/chips.md)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelsim.faults.permanent import FaultMap


def known_faults(packed: bytes, what: str) -> FaultMap | None:
    """The permanent faults that both sides of the link know of, from ``accelsim.faults.chip.packed``; none from no bytes.

    Raises ValueError, beginning with ``what``, for bytes that are no such map. A large map takes seconds the first time: do
    not call it first in an event loop.
    """
    found = _unpacked(packed, what) if packed else None
    if isinstance(found, str):
        raise ValueError(found)
    return found


@lru_cache(maxsize=8)
def _unpacked(packed: bytes, what: str) -> FaultMap | str:
    """The map, or why there is none: what is refused is not unpacked again either."""
    from accelsim.faults import chip  # numba, which nobody waits for where no map is known

    try:
        return chip.unpacked(packed, what)
    except ValueError as error:
        return str(error)
