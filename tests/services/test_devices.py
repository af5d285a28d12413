"""Devices by name: lists, patterns, and which of several processes serves which."""

from __future__ import annotations

import pytest

from services import devices


def test_lists_and_patterns() -> None:
    assert devices.listed("a") == ("a",)
    assert devices.listed("b,a,c-1.x_2") == ("b", "a", "c-1.x_2")
    assert devices.is_pattern("fleet-*")
    assert devices.is_pattern("a,b?")
    assert not devices.is_pattern("a,b")
    assert devices.checked("fleet-*,edge-?") == "fleet-*,edge-?"
    assert devices.matching("fleet-*,x", ["fleet-2", "x", "y", "fleet-1", "Fleet-3"]) == ("fleet-1", "fleet-2", "x")
    assert devices.matching("fleet-?", ["fleet-1", "fleet-12"]) == ("fleet-1",)


@pytest.mark.parametrize("text", ["", ",", "a,", "a b", "a/b", "-a", "+", "#", "a,#", "[a]", "é", "x" * 65, "a\n"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no name of a device"):
        devices.checked(text)


def test_a_device_twice_too_many_or_a_pattern_for_a_name() -> None:
    with pytest.raises(ValueError, match="device b is listed twice"):
        devices.listed("a,b,c,b")
    with pytest.raises(ValueError, match=r"'a\*' is a pattern; here devices are named one by one"):
        devices.listed("a*")
    with pytest.raises(ValueError, match="4097 devices; one run takes at most 4096"):
        devices.listed(",".join(f"d{i}" for i in range(4097)))


def test_each_device_has_one_owner_and_few_move() -> None:
    names = [f"fleet-{i}" for i in range(1000)]
    for processes in (1, 2, 3, 8):
        owners = [devices.owner(name, processes) for name in names]
        counts = [owners.count(number) for number in range(processes)]
        assert sum(counts) == 1000
        assert min(counts) > 0.75 * 1000 / processes
    moved = [name for name in names if devices.owner(name, 4) != devices.owner(name, 5)]
    assert all(devices.owner(name, 5) == 4 for name in moved), "none moves but to the process that came"
    assert 150 < len(moved) < 250
