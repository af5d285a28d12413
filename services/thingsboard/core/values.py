"""Values as ThingsBoard keeps them: what its JSON reader would change is written so that it does not.

It stores a number with more than 16 decimals as text, and takes text that looks like a number for one.
"""

from __future__ import annotations

import re
from typing import Any, Final

Value = bool | int | float | str | dict[str, Any] | list[Any]
DIGITS: Final = 9
"""Significant ones of a float, enough to tell every float32 from its neighbours."""
DECIMALS: Final = 16
"""The most with which a number stays one."""
LARGEST: Final = 2.0**63
TEXT_BYTES: Final = 1024
"""The longest text, in UTF-8."""
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")


def number(value: float) -> float | None:
    """The value to nine significant digits and 16 decimals; None for one that would not be kept as a number.

    That is NaN and the infinities, which JSON has no word for, and what a whole number of 64 bits does not hold.
    """
    rounded = round(float(f"{value:.{DIGITS}g}"), DECIMALS)
    return rounded if abs(rounded) < LARGEST else None


def text(value: str) -> str:
    """The text, cut to 1024 bytes, with an apostrophe before one that would be taken for a number."""
    cut = value.encode("utf-8", "replace")[:TEXT_BYTES].decode("utf-8", "ignore")
    return f"'{cut}"[:TEXT_BYTES] if _NUMBER.fullmatch(cut) else cut
