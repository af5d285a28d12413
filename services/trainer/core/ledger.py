"""What each iteration cost, gathered from the timing events of every service: ``progress.jsonl`` in the run's folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from accelsim.files import naming, write_whole
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


class Voted(Protocol):
    """What the executions of one layer agreed on, as ``services.bus.messages.LayerVotes`` tells of it."""

    @property
    def index(self) -> int: ...
    @property
    def elements(self) -> int: ...
    @property
    def executions(self) -> int: ...
    @property
    def agreed(self) -> int: ...
    @property
    def errors(self) -> int: ...


class LayerRow(msgspec.Struct, array_like=True):
    """One MAC layer in one iteration, in elements; the middle four are 0 where it was not voted on."""

    index: int
    voted: int = 0
    executions: int = 0
    agreed: int = 0
    """Of which all executions said the same."""
    errors: int = 0
    """Of what the device computed, those that are not what was voted."""
    repaired: int = 0
    """That were wrong on the server until a repair mended them."""
    faithful: bool = True
    """Whether its digest on the server is the device's."""


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
    layers: list[LayerRow] = []
    uplink_inputs: int = 0
    uplink_layers: int = 0
    uplink_repairs: int = 0
    downlink: int = 0
    downlink_full: int = 0


class Ledger:
    """Collects the events of running iterations; an event that comes twice counts once."""

    def __init__(self) -> None:
        self._events: dict[int, dict[tuple[str, int, bool], Event]] = defaultdict(dict)
        self._votes: dict[int, dict[int, Voted]] = defaultdict(dict)

    def add(self, timing: Event) -> None:
        """Takes in one event. ``tmr`` comes from both the agent and the voter, told apart by their device time."""
        key = (timing.stage, timing.segment, timing.device_s > 0)
        self._events[timing.iteration][key] = timing

    def add_votes(self, iteration: int, layers: Iterable[Voted]) -> None:
        """Takes in what was voted of some layers."""
        self._votes[iteration].update((layer.index, layer) for layer in layers)

    def copy(self) -> Ledger:
        """One that can be filled in from while this one still collects."""
        other = Ledger()
        other._events.update((iteration, dict(events)) for iteration, events in self._events.items())
        other._votes.update((iteration, dict(votes)) for iteration, votes in self._votes.items())
        return other

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
        row.layers = _layers(row.layers, self._votes.pop(row.iteration, {}))
        return row

    def settle(self, path: Path, rows: list[Row], *, keep: int) -> None:
        """Moves all rows but the last ``keep`` to the progress file, filled."""
        done = rows[: max(0, len(rows) - keep)]
        if done:
            append(path, [self.fill(row) for row in done])
            del rows[: len(done)]
            # Events of iterations that no row will ever claim.
            for of in (self._events, self._votes):
                for iteration in [i for i in of if i < done[-1].iteration]:
                    del of[iteration]


def _layers(layers: list[LayerRow], votes: dict[int, Voted]) -> list[LayerRow]:
    """The layers of a row with what was voted of them, by index."""
    found = {layer.index: layer for layer in layers}
    for index, vote in votes.items():
        layer = found.get(index, LayerRow(index))
        found[index] = msgspec.structs.replace(
            layer, voted=vote.elements, executions=vote.executions, agreed=vote.agreed, errors=vote.errors
        )
    return [found[index] for index in sorted(found)]


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
    """Adds finished rows to a run's progress file. Raises OSError that names it if the disk refuses."""
    with naming(path), path.open("ab") as file:
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
