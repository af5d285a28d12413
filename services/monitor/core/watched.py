"""Devices and their runs as far as they were watched. Every collection here has a bound, and every number was looked at.

What a device says of itself is a stranger's word: names are topic levels or cut, numbers that are none are refused, and
more devices, services, runs or layers than there is room for are counted and left out.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from services.metric import Metric
from services.monitor.core.curve import Curve, Point, point
from services.monitor.core.known import LAYERS, Device, Run, Score, Service, Setting, Totals, count, tell_layers
from services.trainer.core.evaluation import FIRST as EVALUATIONS
from services.trainer.core.ledger import Event, Ledger, Row, Voted

DEVICES: Final = 256
SERVICES: Final = 16
RUNS: Final = 128
"""Of all devices; the one that was silent for longest goes where a new one comes."""
SCORES: Final = 1000
"""Fault seeds of an evaluation."""
PENDING: Final = 16
"""Iterations whose events are still coming."""
EVENTS: Final = 8192
"""Of one iteration."""
RECENT: Final = 512
"""Points that a page that listens can be behind before it is told all again."""
BYTES: Final = 1 << 50
SECONDS: Final = 1e9


class Refused(ValueError):
    """A message whose numbers mean nothing, or that there is no room for."""


@dataclass(slots=True)
class Pending:
    """One iteration whose events are still coming."""

    whole: bool
    """Whether it was watched from its beginning."""
    ledger: Ledger = field(default_factory=Ledger)
    events: int = 0
    row: Row | None = None
    model_bytes: int = 0


@dataclass(slots=True)
class Progress:
    """What is kept of a run beside what is told of it."""

    curve: Curve = field(default_factory=Curve)
    pending: dict[int, Pending] = field(default_factory=dict)
    settled: int = -1
    """The last iteration that is in the totals."""
    watched: bool = False
    """Whether an event of an iteration was heard."""


@dataclass(slots=True)
class Watched:
    """All that is known, and what changed: ``version`` counts changes, ``changed`` has each device's last, ``recent`` the last
    points as (version, device, session, point)."""

    devices: dict[str, Device] = field(default_factory=dict)
    version: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    recent: deque[tuple[int, str, str, Point]] = field(default_factory=lambda: deque(maxlen=RECENT))
    totals: dict[str, Totals] = field(default_factory=lambda: defaultdict(Totals))
    """Of each device, over all runs, for counters that only grow."""
    refused: int = 0
    lost: int = 0
    """Version of the last point that is no longer among the recent ones."""
    _progress: dict[tuple[str, str], Progress] = field(default_factory=dict)

    # ---- what is asked for ----

    def history(self, device: str, session: str) -> list[Point]:
        """The curve of a run; empty for one that is not known."""
        progress = self._progress.get((device, session))
        if progress is None:
            return []
        coming = [provisional(p) for _, p in sorted(progress.pending.items()) if p.row is not None and p.whole]
        return [*progress.curve.all(), *coming]

    # ---- messages ----

    def state(
        self, device: str, service: str, *, online: bool, version: int, samples: dict[str, int], now: float
    ) -> None:  # fmt: skip
        """``state/{service}``. Raises Refused, as all of these do."""
        one = self._service(device, service)
        one.online, one.version = online, _within(version, 1 << 62, "version")
        if samples:
            self.devices[device].samples = {name[:16]: _within(n, BYTES, "samples") for name, n in list(samples.items())[:4]}
        self._touch(device, now)

    def memory(self, device: str, service: str, resident_bytes: int, now: float) -> None:
        """``event/memory``."""
        self._service(device, service).memory_bytes = _within(resident_bytes, BYTES, "resident_bytes")
        self._touch(device, now)

    def mode(self, device: str, session: str, setting: Setting, now: float) -> None:
        """``down/mode``."""
        self._device(device).setting = setting
        if session:
            run = self._run(device, session, now)
            faulty = any(setting.rates.values())
            if setting.mode == "training" or run.setting is None or (faulty and run.setting.mode != "training"):
                run.setting = setting
        self._touch(device, now)

    def progress(
        self, device: str, session: str, phase: str, step: int, steps: int, value: float, *, faults: bool, now: float,
        metric: Metric = "top1",
    ) -> None:  # fmt: skip
        """``event/progress``."""
        run = self._run(device, session, now)
        if phase in ("before", "after", "plain"):
            run.metric = metric
        _within(step, 1 << 40, "step")
        _within(steps, 1 << 40, "steps")
        _finite(value, 1e30, "value")
        run.phase, run.step, run.steps = phase, step, steps
        run.from_folder = False  # it goes on
        run.stopped = ""
        if phase == "train":
            run.loss, run.done, run.iterations = value, max(run.done, step), steps
        elif phase in ("before", "after", "plain") and 0 < step <= steps <= SCORES:
            score = next((s for s in run.scores if (s.phase, s.faults) == (phase, faults)), None)
            if score is None or len(score.values) != steps:
                run.scores = [s for s in run.scores if s is not score]
                score = Score(phase, faults, [None] * steps)
                run.scores.append(score)
            score.values[step - 1] = value
        if phase in ("after", "done"):
            self._settle(device, session, run, 1 << 62)
        self._touch(device, now)

    def stopping(self, device: str, session: str, by: str, *, ended: bool, now: float) -> None:
        """``event/stopping``."""
        if not by or not by.isprintable():
            raise Refused(f"by {by!r} is no name")
        run = self._run(device, session, now)
        run.stopping, run.stopped = ("", f"stopped by {by} after {run.done} iterations") if ended else (by, "")
        self._touch(device, now)

    def timing(self, device: str, session: str, event: Event, now: float) -> None:
        """``event/{stage}``. Evaluations are not counted."""
        if not 0 <= event.iteration < EVALUATIONS:
            return
        (
            _finite(event.host_s, SECONDS, "host_s"),
            _finite(event.device_s, SECONDS, "device_s"),
            _within(event.bytes, BYTES, "bytes"),
        )
        if not -LAYERS * 16 <= event.segment <= LAYERS * 16:
            raise Refused(f"segment {event.segment}")
        run = self._run(device, session, now)
        pending = self._pending(device, session, run, event.iteration)
        if pending is not None and pending.events < EVENTS:
            pending.events += 1
            pending.ledger.add(event)

    def votes(self, device: str, session: str, iteration: int, layers: Sequence[Voted], now: float) -> None:
        """``event/votes``."""
        if not 0 <= iteration < EVALUATIONS:
            return
        for one in layers:
            if max(one.elements, one.executions) > BYTES or max(one.agreed, one.errors) > one.elements:
                raise Refused(f"votes of layer {one.index}: more agreed, or more errors, than elements")
        run = self._run(device, session, now)
        pending = self._pending(device, session, run, iteration)
        if pending is not None and pending.events < EVENTS:
            pending.events += len(layers)
            pending.ledger.add_votes(iteration, layers)

    def iteration(
        self, device: str, session: str, row: Row, *, network: str, steps: int, model_bytes: int, now: float
    ) -> None:  # fmt: skip
        """``event/iteration``: a row that its events are still to be filled in."""
        _within(row.iteration, EVALUATIONS - 1, "iteration")
        _within(steps, EVALUATIONS, "steps")
        for name in ("loss", "accuracy", "grad_norm", "wall_s"):
            if (value := getattr(row, name)) is not None:
                _finite(value, 1e30, name)
        for name in ("attempts", "elements", "mismatched", "repaired", "input_bytes"):
            _within(getattr(row, name), BYTES, name)
        run = self._run(device, session, now)
        run.loss, run.network = row.loss, network
        run.done, run.iterations = max(run.done, row.iteration + 1), max(run.iterations, steps)
        pending = self._pending(device, session, run, row.iteration)
        if pending is None or pending.row is not None:
            return
        pending.row, pending.model_bytes = row, _within(model_bytes, BYTES, "model_bytes")
        # Events of an iteration may still be under way when it ends; by the one after next they are here.
        self._settle(device, session, run, row.iteration - 2)
        self._touch(device, now)
        if pending.whole:
            self._tell(device, session, provisional(pending))

    def add(self, device: str, run: Run, curve: Curve, settled: int) -> None:
        """A run that was read from its folder, in place of what is known of it; what is heard later goes on behind it."""
        known = self._device(device)
        if run.session not in known.runs:
            self._make_room()
        known.runs[run.session] = run
        self._progress[device, run.session] = Progress(curve, settled=settled, watched=True)
        self._touch(device, run.seen)

    # ---- inside ----

    def _touch(self, device: str, now: float) -> None:
        self.version += 1
        self.changed[device] = self.version
        one = self.devices[device]
        one.seen = max(one.seen, now)

    def _tell(self, device: str, session: str, made: Point) -> None:
        if len(self.recent) == RECENT:
            self.lost = self.recent[0][0]
        self.recent.append((self.version, device, session, made))

    def _device(self, name: str) -> Device:
        if name not in self.devices:
            if len(self.devices) >= DEVICES:
                raise Refused(f"device {name[:64]}: {DEVICES} devices are watched, there is room for no more")
            self.devices[name] = Device(name)
        return self.devices[name]

    def _service(self, device: str, name: str) -> Service:
        services = self._device(device).services
        if name not in services:
            if len(services) >= SERVICES:
                raise Refused(f"device {device} has {SERVICES} services, there is room for no more")
            services[name] = Service()
        return services[name]

    def _run(self, device: str, session: str, now: float) -> Run:
        runs = self._device(device).runs
        if session not in runs:
            self._make_room()
            runs[session] = Run(session, now)
            self._progress[device, session] = Progress()
        runs[session].seen = max(now, runs[session].seen)
        return runs[session]

    def _make_room(self) -> None:
        if len(self._progress) >= RUNS:
            device, session = min(self._progress, key=lambda key: self.devices[key[0]].runs[key[1]].seen)
            del self._progress[device, session], self.devices[device].runs[session]

    def _pending(self, device: str, session: str, run: Run, iteration: int) -> Pending | None:
        """Where the events of an iteration go; None for one that is counted: a run that was resumed does the same again."""
        progress = self._progress[device, session]
        if iteration <= progress.settled:
            return None
        if iteration not in progress.pending:
            if len(progress.pending) >= PENDING:
                del progress.pending[min(progress.pending)]
            whole = progress.watched or iteration == 0
            if not whole:
                run.complete = False
            progress.pending[iteration] = Pending(whole)
            progress.watched = True
        return progress.pending.get(iteration)

    def _settle(self, device: str, session: str, run: Run, last: int) -> None:
        """Count the iterations up to one: their events are here."""
        progress = self._progress[device, session]
        for iteration in sorted(i for i in progress.pending if i <= last):
            pending = progress.pending[iteration]
            if pending.row is None:
                continue  # it has not ended, or was not heard to
            del progress.pending[iteration]
            progress.settled = iteration
            if not pending.whole:
                continue
            row = pending.ledger.fill(pending.row)
            for totals in (run.totals, self.totals[device]):
                count(totals, row, pending.model_bytes)
            tell_layers(run, row)
            made = point(row, pending.model_bytes)
            progress.curve.add(made)
            self.version += 1
            self._tell(device, session, made)
        for iteration in [i for i in progress.pending if i <= progress.settled]:
            del progress.pending[iteration]


def provisional(pending: Pending) -> Point:
    """The point of an iteration that has ended, with those of its events that are here."""
    assert pending.row is not None
    return point(pending.ledger.copy().fill(msgspec.structs.replace(pending.row)), pending.model_bytes)


def _within(value: int, most: int, name: str) -> int:
    if not 0 <= value <= most:
        raise Refused(f"{name} {value} is not within 0 and {most}")
    return value


def _finite(value: float, most: float, name: str) -> float:
    if not math.isfinite(value) or abs(value) > most:
        raise Refused(f"{name} {value:g} is no number that could be")
    return value
