"""What each iteration cost, gathered from the timing events of every service: ``progress.jsonl`` in the run's folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from accelsim.files import write_whole
from services.codec.core.segments import INPUTS, MODEL, REPAIR


class Event(Protocol):
    """One stage of one iteration, as ``services.bus.messages.Timing`` tells of it."""

    @property
    def stage(self) -> str: ...
    @property
    def iteration(self) -> int: ...
    @property
    def segment(self) -> int: ...
    @property
    def host_s(self) -> float: ...
    @property
    def device_s(self) -> float: ...
    @property
    def bytes(self) -> int: ...


class Segment(msgspec.Struct, array_like=True):
    """Some layers on their way: modelled seconds on the device (FP and TMR), seconds to compress, bytes sent, seconds to
    rebuild."""

    device_s: float = 0.0
    compress_s: float = 0.0
    bytes: int = 0
    rebuild_s: float = 0.0


class Row(msgspec.Struct, kw_only=True):
    """One finished iteration. Bytes are those of the link's messages, MQTT payload and topic; seconds are sums."""

    iteration: int
    loss: float
    accuracy: float | None
    """Share of the batch that the device itself got right, in per cent; None of images, which are not simply right."""
    grad_norm: float
    wall_s: float
    """From the forward's sending until the next model was handed over, as the trainer saw it."""
    attempts: int
    elements: int
    """Of all intermediate outputs."""
    mismatched: int
    """Elements of the layers that the server has wrong, by their digests; none where repairs are on."""
    mismatched_layers: int
    """Layers whose digest is not the device's."""
    repaired: int = 0
    """Elements that were wrong until a repair mended them."""
    input_bytes: int
    """The batch as uint8."""
    host_s: dict[str, float] = {}
    device_s: dict[str, float] = {}
    segments: list[Segment] = []
    uplink_inputs: int = 0
    uplink_layers: int = 0
    uplink_repairs: int = 0
    downlink: int = 0
    downlink_full: int = 0


class Ledger:
    """Collects the events of running iterations; an event that comes twice counts once."""

    def __init__(self) -> None:
        self._events: dict[int, dict[tuple[str, int, bool], Event]] = defaultdict(dict)

    def add(self, timing: Event) -> None:
        """Takes in one event. ``tmr`` comes from both the agent and the voter, told apart by their device time."""
        key = (timing.stage, timing.segment, timing.device_s > 0)
        self._events[timing.iteration][key] = timing

    def fill(self, row: Row) -> Row:
        """The row with what the events of its iteration add up to; they are forgotten here."""
        host: dict[str, float] = defaultdict(float)
        device: dict[str, float] = defaultdict(float)
        events = self._events.pop(row.iteration, {})
        for (stage, segment, _), timing in events.items():
            host[stage] += timing.host_s
            device[stage] += timing.device_s
            if stage != "compress":
                continue
            if segment <= REPAIR:
                row.uplink_repairs += timing.bytes
            elif segment == INPUTS:
                row.uplink_inputs += timing.bytes
            elif segment == MODEL:
                row.downlink += timing.bytes
            else:
                row.uplink_layers += timing.bytes
        row.host_s, row.device_s = dict(host), dict(device)
        row.segments = _segments(events.values())
        return row

    def settle(self, path: Path, rows: list[Row], *, keep: int) -> None:
        """Moves all rows but the last ``keep`` to the progress file, filled."""
        done = rows[: max(0, len(rows) - keep)]
        if done:
            append(path, [self.fill(row) for row in done])
            del rows[: len(done)]
            # Events of iterations that no row will ever claim.
            for iteration in [i for i in self._events if i < done[-1].iteration]:
                del self._events[iteration]


def _segments(events: Iterable[Event]) -> list[Segment]:
    found: dict[int, Segment] = defaultdict(Segment)
    for timing in events:
        if timing.segment < 0:
            continue
        segment = found[timing.segment]
        if timing.stage in ("forward", "tmr"):
            segment.device_s += timing.device_s
        elif timing.stage == "compress":
            segment.compress_s, segment.bytes = timing.host_s, timing.bytes
        elif timing.stage == "decompress":
            segment.rebuild_s = timing.host_s
    return [found[number] for number in sorted(found)]


def append(path: Path, rows: list[Row]) -> None:
    """Adds finished rows to a run's progress file."""
    with path.open("ab") as file:
        for row in rows:
            file.write(msgspec.json.encode(row) + b"\n")


def read(path: Path) -> list[Row]:
    """The rows of a progress file, none if there is no file. A last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    whole = lines[:-1]
    return [msgspec.json.decode(line, type=Row) for line in whole]


def truncate(path: Path, iteration: int) -> None:
    """Drops the rows from ``iteration`` on: a resumed run does those again."""
    rows = [row for row in read(path) if row.iteration < iteration]
    write_whole(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
