"""A chip's permanent faults as a file, as bytes for a message, and drawn at random (docs/chips.md).

The file is JSON: a version, a name, the array's rows and columns, and a list of faults, each with its ``kind``. What is read
is checked to the last fault, so a ``FaultMap`` that came from here has no contradiction in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import zstandard
from msgspec import Meta

from accelsim.faults.permanent import Fault, FaultMap, fault_map
from accelsim.faults.soft import distinct
from accelsim.files import write_whole
from accelsim.timing import Array

SIDE: Final = 1024
"""The most rows or columns that a file may name: masks of that many elements are made of it."""
FAULTS: Final = 1 << 17
"""The most faults that it may list."""
BYTES: Final = 16 << 20
"""The longest file."""

Side = Annotated[int, Meta(ge=1, le=SIDE)]
Index = Annotated[int, Meta(ge=0, lt=SIDE)]
Bit = Annotated[int, Meta(ge=0, le=1)]
Kind = Literal["weight", "accumulator", "bypass"]
STUCK: Final[tuple[Kind, ...]] = ("weight", "accumulator")


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="weight"):
    """A stuck bit of the weight register of the processing element (PE) at (row, column); bit 0 is the least significant."""

    row: Index
    column: Index
    bit: Annotated[int, Meta(ge=0, le=7)]
    value: Bit


class Accumulator(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="accumulator"):
    """A stuck bit of the partial sum that a PE latches, int32."""

    row: Index
    column: Index
    bit: Annotated[int, Meta(ge=0, le=31)]
    value: Bit


class Bypass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="bypass"):
    """A PE whose product is dropped and which the sum goes round; other faults of it have no effect."""

    row: Index
    column: Index


class Chip(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a chip file holds."""

    version: Literal[1]
    rows: Side
    columns: Side
    faults: Annotated[tuple[Weight | Accumulator | Bypass, ...], Meta(max_length=FAULTS)]
    name: Annotated[str, Meta(max_length=200)] = ""


def schema() -> dict[str, Any]:
    """The JSON schema of a chip file."""
    return msgspec.json.schema(Chip)


def read(path: str | os.PathLike[str], array: Array | None = None) -> FaultMap:
    """The faults in a chip file; those of an ``array`` where one is given.

    Raises ValueError naming the file, and the field that is unknown, missing, out of range or contradicts another, or the
    array's size where the chip's is another; OSError where the file cannot be read.
    """
    with Path(path).open("rb") as file:
        data = file.read(BYTES + 1)
    if len(data) > BYTES:
        raise ValueError(f"{path}: a chip file has at most {BYTES} bytes")
    found = parsed(data, str(path))
    return found if array is None else on(found, array, str(path))


def write(path: str | os.PathLike[str], faults: FaultMap) -> None:
    """Leaves a chip file, whole or not at all, its faults by row and column.

    Raises ValueError, which names the file, for a map that ``read`` would refuse, OSError where the disk refuses.
    """
    try:
        chip = msgspec.convert(msgspec.to_builtins(_chip(faults)), Chip)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: no chip file can hold this map (docs/chips.md): {error}") from None
    head = msgspec.json.encode({"version": chip.version, "name": chip.name, "rows": chip.rows, "columns": chip.columns})
    lines = b",\n  ".join(msgspec.json.encode(fault) for fault in chip.faults)
    body = b"\n  " + lines + b"\n" if lines else b""
    write_whole(path, head[:-1] + b',"faults":[' + body + b"]}\n")


def parsed(data: bytes, what: str) -> FaultMap:
    """The faults in a chip file's bytes. Raises ValueError that begins with ``what`` and names the field."""
    try:
        chip = msgspec.json.decode(data, type=Chip)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what}: not a chip file (docs/chips.md): {error}") from None
    _keys_once(data, what)
    seen: dict[tuple[object, ...], int] = {}
    faults = []
    for place, listed in enumerate(chip.faults):
        bits = () if isinstance(listed, Bypass) else (listed.bit, listed.value)
        fault = Fault(listed.row, listed.column, _kind(listed), *bits)
        where = f"{what}: faults[{place}] ({fault.kind} at row {fault.row}, column {fault.column})"
        if fault.row >= chip.rows or fault.column >= chip.columns:
            raise ValueError(
                f"{where}: the array has rows 0 to {chip.rows - 1} and columns 0 to {chip.columns - 1}; "
                "take the fault out or mend rows and columns"
            )
        key = (fault.row, fault.column, fault.kind, *bits[:1])
        if key in seen:
            again = chip.faults[seen[key]] == listed
            said = "lists it already" if again else "sticks that bit at the other value"
            raise ValueError(f"{where}: faults[{seen[key]}] {said}; keep one of the two")
        seen[key] = place
        faults.append(fault)
    return fault_map(Array(rows=chip.rows, columns=chip.columns), faults, chip.name)


def _keys_once(data: bytes, what: str) -> None:
    """Raises ValueError for JSON, valid otherwise, that has a key twice in an object: of two values none can be believed."""

    def checked(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            where = "a fault" if "kind" in keys else "the chip"
            said = ", ".join(f"{key} {value!r}" for key, value in pairs if isinstance(value, int | str))[:200]
            raise ValueError(f"{what}: {twice!r} is there twice in {where} ({said}); keep one of the two")

    json.loads(data, object_pairs_hook=checked)


def on(faults: FaultMap, array: Array, what: str) -> FaultMap:
    """The faults, which must be of an array of this size. Raises ValueError that begins with ``what``."""
    of, wanted = (f"{a.rows}x{a.columns}" for a in (faults.array, array))
    if of != wanted:
        raise ValueError(f"{what}: a chip with an array of {of}, but --array has {wanted}; give the chip's array with --array")
    return faults


def packed(faults: FaultMap) -> bytes:
    """A chip file as one zstd frame that says its size: the same map gives the same bytes, in whatever order it was listed."""
    return zstandard.ZstdCompressor(level=9).compress(msgspec.json.encode(_chip(faults)))


def unpacked(data: bytes, what: str) -> FaultMap:
    """What ``packed`` packed. Raises ValueError that begins with ``what``; takes no more memory than a chip file may."""
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if not 0 <= size <= BYTES:
            raise ValueError(f"{what}: says that it holds {size} bytes, a chip file has at most {BYTES}")
        text = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"{what}: no packed chip file: {error}") from None
    return parsed(text, what)


def digest(faults: FaultMap) -> str:
    """Sixteen hexadecimal digits by which two sides say which map they mean: alike where the masks and the array's size are.

    A PE that is bypassed and one whose weight bits are all stuck at 0 are alike, and act alike. The name does not count.
    """
    of = hashlib.sha256(f"{faults.array.rows}x{faults.array.columns}".encode())
    for mask in (faults.weight_keep, faults.weight_force, faults.sum_keep, faults.sum_force):
        of.update(mask.astype(mask.dtype.newbyteorder("<")).tobytes())
    return of.hexdigest()[:16]


def random_map(array: Array, rate: float, seed: int, kinds: Sequence[Kind] = STUCK) -> FaultMap:
    """A chip on which a share ``rate`` (0 to 1) of the PEs is faulty: ``round(rate * rows * columns)`` of them, one fault each.

    Places are drawn without replacement, then each one's kind evenly from ``kinds``, bit and value evenly from those of the
    kind. Same arguments, same map. Raises ValueError for a rate outside 0 to 1, no kinds, or an unknown one.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"random faults: the rate is {rate}; give a share of the processing elements, 0 to 1")
    if not kinds or any(kind not in ("weight", "accumulator", "bypass") for kind in kinds):
        raise ValueError(f"random faults: kinds are {', '.join(kinds) or 'none'}; give weight, accumulator, bypass or several")
    key = hashlib.blake2b(repr(("chip", array.rows, array.columns, int(seed))).encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))
    size = array.rows * array.columns
    places = distinct(generator, size, round(rate * size))
    of = generator.integers(0, len(kinds), len(places))
    bits = generator.integers(0, 32, len(places))
    values = generator.integers(0, 2, len(places))
    faults = []
    for place, index, bit, value in zip(places.tolist(), of.tolist(), bits.tolist(), values.tolist(), strict=True):
        row, column = divmod(place, array.columns)
        kind = kinds[index]
        # 8 divides 32, so that a weight's bits are even too.
        faults.append(Fault(row, column, kind, *(() if kind == "bypass" else (bit % (8 if kind == "weight" else 32), value))))
    return fault_map(array, faults, f"random, rate {rate:g}, seed {seed}")


def of(array: Array, path: str | os.PathLike[str] | None, rate: float | None, seed: int) -> FaultMap | None:
    """The chip that a user asked for: a file's, a random one, or None for a sound array.

    A rate of 0 is a sound array. Raises ValueError where both are given, and what ``read`` and ``random_map`` raise.
    """
    rate = rate or None
    if path is not None and rate is not None:
        raise ValueError(f"--fault-map {path} and --random-faults {rate:g} exclude one another: give one")
    if path is not None:
        return read(path, array)
    return None if rate is None else random_map(array, rate, seed)


def _kind(fault: Weight | Accumulator | Bypass) -> Kind:
    match fault:
        case Weight():
            return "weight"
        case Accumulator():
            return "accumulator"
        case Bypass():
            return "bypass"


def _chip(faults: FaultMap) -> Chip:
    listed: list[Weight | Accumulator | Bypass] = []
    for fault in sorted(set(faults.faults), key=lambda f: (f.row, f.column, f.kind, f.bit)):
        match fault.kind:
            case "weight":
                listed.append(Weight(fault.row, fault.column, fault.bit, fault.value))
            case "accumulator":
                listed.append(Accumulator(fault.row, fault.column, fault.bit, fault.value))
            case "bypass":
                listed.append(Bypass(fault.row, fault.column))
    return Chip(1, faults.array.rows, faults.array.columns, tuple(listed), faults.name)
