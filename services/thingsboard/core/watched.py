"""One device as its messages on the bus tell of it, in ThingsBoard's words: attributes, and telemetry with its time.

Times are milliseconds since 1970, of a message's receipt. Nothing here waits or sends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import Final, NamedTuple

import msgspec

from accelsim.faults import Rates
from services.metric import Metric
from services.scheme import Scheme
from services.thingsboard.core.values import LARGEST, Value, number, text
from services.trainer.core import evaluation
from services.trainer.core.ledger import Event

SECOND_MS: Final = 1000
"""Stage times and bytes of as long are one point: sums of bytes, the longest of times."""
SERVICES: Final = 64
"""Of one device; a broker may be told of more, which are left out."""
SEEDS: Final = 1024
"""Of an evaluation whose mean is made."""


class Point(NamedTuple):
    """Telemetry of one moment."""

    ts: int
    values: dict[str, Value]


@dataclass(slots=True)
class Watched:
    """What is known of one device. ``attributes`` are all that ThingsBoard is to have of it."""

    attributes: dict[str, Value] = field(default_factory=dict)
    online: bool = False
    """Whether its agent is there."""
    trainer_seen: float = -1e9
    """Seconds, of the caller's clock, when a trainer was last known to be there; infinity while one is."""
    stages: dict[str, Value] = field(default_factory=dict)
    """The point under way."""
    begun: int = 0
    """When its second began; 0 where there is none."""
    last: int = 0
    """Time of the last point of a step: two of one millisecond would be one."""
    session: str = ""
    scores: dict[tuple[str, bool], dict[int, float]] = field(default_factory=dict)
    """The metric of the session's evaluations by (phase, with faults), then by seed number."""


def state(of: Watched, service: str, online: bool, boot: str, version: int, samples: dict[str, int]) -> dict[str, Value]:
    """The attributes that a service's State makes. Ids are prefixed: one of digits alone would become a number."""
    known = f"{service}_online" in of.attributes
    if not known and sum(key.endswith("_online") for key in of.attributes) >= SERVICES:
        return {}
    found: dict[str, Value] = {f"{service}_online": online}
    if boot:
        found[f"{service}_boot"] = f"b-{boot}"
    if service == "agent":
        of.online = online
        if online:
            found["model_version"] = version
            found |= {f"samples_{split}": count for split, count in samples.items() if split in ("train", "test")}
    of.attributes |= found
    return found


def mode(of: Watched, session: str, named: str, rates: Rates, seed: int, scheme: Scheme, known: bytes) -> dict[str, Value]:
    """The attributes ``effective_*``: how the device was told to run, by a run or by this bridge."""
    found: dict[str, Value] = {
        "session": text(session),
        "effective_mode": named,
        "effective_seed": seed if abs(seed) < LARGEST else text(str(seed)),
        "effective_codec": scheme.codec,
        "effective_vote": scheme.vote,
        "effective_replicas": scheme.executions,
        "effective_theta": number(scheme.theta) or 0.0,
        "effective_protected": list(scheme.protected),
        "effective_exact": scheme.repairs,
        "effective_tmr": scheme.tmr or "none",
        "link_bits_per_s": number(scheme.uplink_bits_per_s) or 0.0,
        "known_faults": bool(known),
    }
    for site, rate in msgspec.structs.asdict(rates).items():
        found[f"effective_ber_{site}"] = number(rate) or 0.0
    of.attributes |= found
    return found


def progress(
    of: Watched,
    session: str,
    phase: str,
    step: int,
    steps: int,
    value: float,
    norm: float,
    faults: bool,
    now: int,
    metric: Metric = "top1",
) -> Point:
    """The point of an ``event/progress``. An evaluation's mean is told when all its seeds have been heard.

    Its keys begin with ``accuracy`` for top-1, in per cent, else with the metric's name.
    """
    if of.session != session:
        of.session, of.scores = session, {}
    measured = "accuracy" if metric == "top1" else metric
    values: dict[str, Value] = {"phase": phase, "step": step, "steps": steps}
    if phase == "train":
        _put(values, "loss", value)
        _put(values, "grad_norm", norm)
    elif phase == "done":
        _put(values, f"{measured}_after", value)
    elif phase != "select":
        name = f"{measured}_{phase}" if faults else f"{measured}_{phase}_no_faults"
        _put(values, f"{name}_seed", value)
        scores = of.scores.setdefault((phase, faults), {})
        if 1 <= step <= steps <= SEEDS:
            scores[step] = value
        if steps and scores.keys() == set(range(1, steps + 1)):
            _put(values, name, fmean(scores[number] for number in sorted(scores)))
    of.last = max(now, of.last + 1)
    return Point(of.last, values)


def timing(of: Watched, event: Event, now: int) -> list[Point]:
    """Adds a stage's event to the second under way; the point of the second before, where this one begins another."""
    ended = due(of, now)
    if not of.begun:
        of.begun = now
    stages, stage = of.stages, event.stage
    for key, seconds in ((f"{stage}_host_s", event.host_s), (f"{stage}_device_s", event.device_s)):
        rounded = number(seconds)
        if rounded is not None and (rounded > 0 or key.endswith("_host_s")):
            before = stages.get(key)
            stages[key] = max(before, rounded) if isinstance(before, float) else rounded
    if event.bytes:
        before = stages.get(f"{stage}_bytes", 0)
        stages[f"{stage}_bytes"] = (before if isinstance(before, int) else 0) + event.bytes
    number_of_pass = evaluation.pass_of(event.iteration)
    stages["iteration" if number_of_pass is None else "evaluation_pass"] = (
        event.iteration if number_of_pass is None else number_of_pass
    )
    return ended


def due(of: Watched, now: int, *, at_once: bool = False) -> list[Point]:
    """The point of the second under way, where it is over; ``at_once``, in any case."""
    if not of.begun or (now - of.begun < SECOND_MS and not at_once):
        return []
    point = Point(of.begun, of.stages)
    of.stages, of.begun = {}, 0
    return [point]


def _put(values: dict[str, Value], key: str, value: float) -> None:
    rounded = number(value)
    if rounded is not None:
        values[key] = rounded
