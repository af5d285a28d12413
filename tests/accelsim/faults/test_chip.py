"""Chip files: what is written is read, what is wrong is refused by file and field, and random chips are what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim.faults import chip
from accelsim.faults.permanent import Fault, FaultMap, fault_map
from accelsim.timing import Array


def same(one: FaultMap, other: FaultMap) -> bool:
    return (
        (one.array.rows, one.array.columns, one.name) == (other.array.rows, other.array.columns, other.name)
        and set(one.faults) == set(other.faults)
        and all(
            np.array_equal(getattr(one, mask), getattr(other, mask))
            for mask in ("weight_keep", "weight_force", "sum_keep", "sum_force")
        )
    )


@st.composite
def maps(draw: st.DrawFn) -> FaultMap:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rate, seed = draw(st.floats(0, 1)), draw(st.integers(0, 99))
    kinds = draw(st.lists(st.sampled_from(["weight", "accumulator", "bypass"]), min_size=1, max_size=3))
    return chip.random_map(Array(rows=rows, columns=columns), rate, seed, kinds)


@given(faults=maps())
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, faults: FaultMap) -> None:
    path = tmp_path_factory.mktemp("chips") / "chip.json"
    chip.write(path, faults)
    found = chip.read(path)
    assert same(found, faults)
    assert same(chip.unpacked(chip.packed(faults), "message"), faults)
    assert chip.digest(found) == chip.digest(faults)


def test_a_file_is_plain_json(tmp_path: Path) -> None:
    faults = [Fault(1, 2, "weight", 7, 1), Fault(0, 3, "accumulator", 31, 0), Fault(1, 0, "bypass")]
    chip.write(tmp_path / "a.json", fault_map(Array(rows=2, columns=4), faults, "a"))
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "version": 1,
        "name": "a",
        "rows": 2,
        "columns": 4,
        "faults": [
            {"kind": "accumulator", "row": 0, "column": 3, "bit": 31, "value": 0},
            {"kind": "bypass", "row": 1, "column": 0},
            {"kind": "weight", "row": 1, "column": 2, "bit": 7, "value": 1},
        ],
    }


def test_digest_is_of_what_a_map_does() -> None:
    array = Array(rows=4, columns=4)
    faults = [Fault(1, 2, "weight", 7, 1), Fault(0, 3, "accumulator", 31, 0)]
    of = chip.digest(fault_map(array, faults, "a"))
    assert len(of) == 16
    assert of == chip.digest(fault_map(array, faults[::-1], "b"))
    assert chip.packed(fault_map(array, faults)) == chip.packed(fault_map(array, faults[::-1]))
    assert of != chip.digest(fault_map(array, faults[:1]))
    assert of != chip.digest(fault_map(Array(rows=4, columns=5), faults))
    dead = fault_map(array, [Fault(0, 0, "weight", bit, 0) for bit in range(8)])
    assert chip.digest(dead) == chip.digest(fault_map(array, [Fault(0, 0, "bypass")]))


GOOD: dict[str, Any] = {
    "version": 1,
    "rows": 4,
    "columns": 4,
    "faults": [{"kind": "weight", "row": 1, "column": 2, "bit": 3, "value": 1}],
}
STUCK: dict[str, Any] = GOOD["faults"][0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, r"\$\.version"),
        ({"rows": 0}, r"\$\.rows"),
        ({"rows": 1 << 20}, r"\$\.rows"),
        ({"columns": "4"}, r"\$\.columns"),
        ({"colour": 1}, "colour"),
        ({"faults": [STUCK | {"kind": "dead"}]}, r"'dead'.*\$\.faults\[0\]\.kind"),
        ({"faults": [STUCK | {"bit": 8}]}, r"\$\.faults\[0\]\.bit"),
        ({"faults": [STUCK | {"kind": "accumulator", "bit": 32}]}, r"\$\.faults\[0\]\.bit"),
        ({"faults": [STUCK | {"value": 2}]}, r"\$\.faults\[0\]\.value"),
        ({"faults": [STUCK | {"colour": 2}]}, r"colour.*\$\.faults\[0\]"),
        ({"faults": [{"kind": "weight", "row": 1, "column": 2, "bit": 3}]}, r"value.*\$\.faults\[0\]"),
        ({"faults": [{"kind": "bypass", "row": 1, "column": 2, "bit": 3}]}, r"bit.*\$\.faults\[0\]"),
        ({"faults": [STUCK | {"row": 4}]}, r"faults\[0\] \(weight at row 4, column 2\): the array has rows 0 to 3"),
        ({"faults": [STUCK | {"column": 4}]}, r"faults\[0\].*columns 0 to 3"),
        ({"faults": [STUCK, STUCK]}, r"faults\[1\].*faults\[0\] lists it already"),
        ({"faults": [STUCK, STUCK | {"value": 0}]}, r"faults\[1\].*faults\[0\] sticks that bit at the other value"),
        ({"faults": 3}, r"\$\.faults"),
    ],
)
def test_what_is_wrong_is_refused_by_file_and_field(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=said) as refused:
        chip.read(path)
    assert str(refused.value).startswith(str(path))


def test_what_is_no_json_or_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bad\.json: not a chip file"):
        chip.read(path)
    path.write_bytes(b" " * (chip.BYTES + 1))
    with pytest.raises(ValueError, match=r"bad\.json: a chip file has at most"):
        chip.read(path)
    with pytest.raises(FileNotFoundError):
        chip.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"version": 1, "rows": 4, "columns": 4, "faults": [], "rows": 8}', "'rows' is there twice in the chip"),
        (
            '{"version": 1, "rows": 4, "columns": 4, '
            '"faults": [{"kind": "weight", "row": 1, "column": 2, "bit": 3, "value": 1, "bit": 4}]}',
            r"'bit' is there twice in a fault \(.*row 1, column 2, bit 3, value 1, bit 4\); keep one",
        ),
        (
            '{"version": 1, "rows": 4, "columns": 4, "faults": [{"kind": "bypass", "row": 1, "column": 2}], "faults": []}',
            "'faults'",
        ),
    ],
)
def test_a_doubled_key_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "twice.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as refused:
        chip.read(path)
    assert str(refused.value).startswith(str(path))


def test_what_read_would_refuse_is_not_written(tmp_path: Path) -> None:
    array = Array(rows=128, columns=128)
    faults = [Fault(*divmod(n // 9, 128), "accumulator", n % 9, 1) for n in range(chip.FAULTS + 1)]
    path = tmp_path / "full.json"
    with pytest.raises(ValueError, match=r"full\.json: no chip file can hold this map.*faults") as refused:
        chip.write(path, fault_map(array, faults))
    assert str(chip.FAULTS) in str(refused.value)
    assert not path.exists()
    most = fault_map(array, faults[:-1])
    chip.write(path, most)
    assert chip.digest(chip.read(path)) == chip.digest(most)
    with pytest.raises(ValueError, match="name"):
        chip.write(path, fault_map(array, [], "n" * 201))


def test_a_chip_of_another_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chip.json"
    path.write_text(json.dumps(GOOD))
    assert chip.read(path, Array(rows=4, columns=4, clock_hz=1e9)).array.rows == 4
    with pytest.raises(ValueError, match=r"chip\.json: a chip with an array of 4x4, but --array has 32x32"):
        chip.read(path, Array())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        zstandard.ZstdCompressor().compress(b"{}"),
        zstandard.ZstdCompressor().compress(bytes(chip.BYTES + 1)),
        zstandard.ZstdCompressor(write_content_size=False).compress(json.dumps(GOOD).encode()),
        chip.packed(fault_map(Array(rows=4, columns=4), [])) + b"x",
    ],
)
def test_packed_bytes_that_nobody_packed_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^message: "):
        chip.unpacked(data, "message")


def test_random_chips_have_just_so_many_faulty_elements() -> None:
    array = Array(rows=32, columns=32)
    for rate, count in ((0.0, 0), (0.01, 10), (0.05, 51), (1.0, 1024)):
        found = chip.random_map(array, rate, 3)
        assert len({(fault.row, fault.column) for fault in found.faults}) == len(found.faults) == count
    one, again, other = (chip.random_map(array, 0.05, seed) for seed in (3, 3, 4))
    assert chip.digest(one) == chip.digest(again) != chip.digest(other)


def test_random_chips_are_even_in_kind_bit_and_value() -> None:
    found = chip.random_map(Array(rows=256, columns=256), 0.5, 1).faults
    weights = [fault for fault in found if fault.kind == "weight"]
    sums = [fault for fault in found if fault.kind == "accumulator"]
    assert len(weights) + len(sums) == len(found) == 32768
    assert abs(len(weights) - len(sums)) < 4 * 32768**0.5
    for faults, width in ((weights, 8), (sums, 32)):
        counts = np.bincount([fault.bit * 2 + fault.value for fault in faults], minlength=2 * width)
        mean = len(faults) / len(counts)
        assert len(counts) == 2 * width
        assert np.abs(counts - mean).max() < 5 * mean**0.5
    assert {f.kind for f in chip.random_map(Array(), 0.05, 1, ["bypass"]).faults} == {"bypass"}


def test_random_chips_refuse_what_means_nothing() -> None:
    with pytest.raises(ValueError, match=r"the rate is 1\.5"):
        chip.random_map(Array(), 1.5, 1)
    with pytest.raises(ValueError, match="kinds are none"):
        chip.random_map(Array(), 0.1, 1, [])
    with pytest.raises(ValueError, match="kinds are dead"):
        chip.random_map(Array(), 0.1, 1, ["dead"])  # type: ignore[list-item]


def test_the_documentation_has_the_schema() -> None:
    page = Path(__file__).resolve().parents[3] / "docs/chip.schema.json"
    assert json.loads(page.read_text(encoding="utf-8")) == chip.schema()


def test_bytes_that_are_no_text_are_named_by_file() -> None:
    with pytest.raises(ValueError, match=r"^a\.json: not a chip file"):
        chip.parsed(b'{"version": 1, "rows": 1, "columns": 1, "faults": [], "name": "\xff"}', "a.json")
