"""Text of strangers as a terminal may have it."""

from __future__ import annotations


def plain(text: str, keep: str = "") -> str:
    r"""The text with all that a terminal would obey written out, as ``\x1b`` for ESC; letters of any script stay, as does what
    ``keep`` has.

    Written out are control characters, line breaks, marks that turn the direction of writing, and halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)
