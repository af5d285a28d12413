"""Maps that both ends know: a hostile one is looked at once."""

from __future__ import annotations

import pytest

from accelsim.faults import chip
from accelsim.timing import Array
from services import known


def test_a_map_and_what_is_none_are_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []
    unpacked = chip.unpacked

    def counted(data: bytes, what: str) -> object:
        looked.append(data)
        return unpacked(data, what)

    monkeypatch.setattr(chip, "unpacked", counted)
    known._unpacked.cache_clear()
    good = chip.packed(chip.random_map(Array(rows=4, columns=4), 0.5, 1))
    for _ in range(3):
        assert known.known_faults(good, "down/mode: known") is not None
        with pytest.raises(ValueError, match="down/mode: known: no packed chip file"):
            known.known_faults(b"hostile", "down/mode: known")
    assert looked == [good, b"hostile"]
    assert known.known_faults(b"", "down/mode: known") is None
