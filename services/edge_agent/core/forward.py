"""One forward pass of the device, as a generator of segments: what the accelerator computed, ready for the voter."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar, assert_never

import numpy as np

from accelsim.accelerators import Accelerator
from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Activation, Conv, Network
from accelsim.int8.walk import walk
from services.edge_agent.core.plan import Plan
from services.edge_agent.core.referee import Int64, Settled, settle
from services.scheme import SEGMENT_BYTES


@dataclass(slots=True)
class Executed:
    """The executions of one MAC layer on one input, each of the layer's dtype, (N, H, W, C).

    ``actual`` is the output that fed the next layer where it is not ``replicas[0]``. ``settled`` is what the referee says
    of the vote over them, where there is one.
    """

    index: int
    replicas: list[Activation]
    actual: Activation | None = None
    protected: bool = False
    settled: Settled | None = None
    direct: bool = False
    """Under the similarity threshold."""
    again: bool = False
    """Of a further run of the network: all of it is redundancy."""
    ran: bool = True
    """Not where the vote alone is new, over what earlier runs computed."""

    @property
    def as_it_is(self) -> bool:
        """Whether its outputs themselves are to be sent: there is no vote that they could be compared with."""
        return self.direct or (self.settled is not None and self.settled.direct)

    @property
    def refereed(self) -> tuple[Int64 | None, Activation | None]:
        """Flat positions and values that override the vote; without positions the values are the whole layer."""
        if self.settled is None or self.settled.direct:
            return None, None
        return self.settled.positions, self.settled.values

    @property
    def executions(self) -> int:
        """How often the layer ran, in all: not all of its outputs are needed for the vote."""
        settled = 0 if self.settled is None else self.settled.executions
        return max(settled, len(self.replicas) + (self.actual is not None))


@dataclass(slots=True)
class Segment:
    """Some consecutive layers. ``awaits_vote``: the pass goes on only with the votes, by ``generator.send``."""

    layers: list[Executed] = field(default_factory=list)
    awaits_vote: bool = False

    def done(self) -> None:
        """Let go of the outputs, which are sent."""
        for executed in self.layers:
            executed.replicas, executed.actual, executed.settled = [], None, None


Votes = dict[int, Activation]
"""Vote of each layer of the segment last yielded, by layer index."""

PROTECTED_REPLICAS = 3
SIMILARITY = 1 << 29
"""Iteration number of ``similarity``: no training or evaluation has it."""
T = TypeVar("T")


def execute(
    network: Network, engine: Engine, accelerator: Accelerator, x: Activation, iteration: int, plan: Plan
) -> Generator[Segment, Votes | None, Activation]:
    """Run ``network`` on ``x`` (N, H, W, C) and yield every MAC layer's executions, in order.

    MAC layers run on the accelerator and may be wrong; the others run exactly, on the general-purpose processor
    (architecture.md, "Arithmetic"). Returns the actual output of the last layer, (N, 1, 1, C).

    The caller sends back the votes of a segment that awaits them, and None otherwise. Replicas are many times as large as
    the layer: the caller empties the segment's layers (``Segment.done``) before it goes on.
    """
    device = _Device(engine, accelerator, iteration, plan)
    run, count = _way(plan)
    # The passes that go on with values of their own, the actual one first; they walk the network in step.
    passes: list[dict[int, Activation]] = [{INPUT: x} for _ in range(count)]
    segment, gathered = Segment(), 0
    for steps in zip(*(walk(network, values) for values in passes), strict=True):
        index, layer, _ = steps[0]
        operands = [given for _, _, given in steps]
        if not isinstance(layer, Conv):
            for values, given in zip(passes, operands, strict=True):
                values[index] = engine.fault_free(index, given)
            continue
        executed, goes_on = run(device, index, layer, [given[0] for given in operands])
        segment.layers.append(executed)
        gathered += executed.replicas[0].nbytes
        waits = any(value is None for value in goes_on)
        votes: Votes | None = None
        if waits or gathered >= SEGMENT_BYTES:
            segment.awaits_vote = waits
            votes = yield segment
            segment, gathered = Segment(), 0
        for values, value in zip(passes, goes_on, strict=True):
            if value is None:
                if votes is None:
                    raise RuntimeError(f"layer {index} ({layer.name}) awaits its vote, but none was sent")
                value = votes[index]
            values[index] = value
    if segment.layers:
        yield segment
    return passes[0][len(network.layers) - 1]


class _Device(NamedTuple):
    """What runs a pass."""

    engine: Engine
    accelerator: Accelerator
    iteration: int
    plan: Plan


Ran = tuple[Executed, Sequence[Activation | None]]
"""A MAC layer's executions, and the value that each pass goes on with; None is its vote, which is to be waited for."""
Run = Callable[[_Device, int, Conv, list[Activation]], Ran]
"""(device, index, layer, the layer's input in each pass) to its executions."""


def _way(plan: Plan) -> tuple[Run, int]:
    """How MAC layers run under a plan, and how many passes that takes."""
    match plan.beside:
        case None:
            return _alone, 1
        case "layer":
            return _beside_votes, 2
        case "network":
            return _beside_runs, 1 + plan.replicas
        case _:
            assert_never(plan.beside)


def _alone(device: _Device, index: int, layer: Conv, inputs: list[Activation]) -> Ran:
    """One pass: all executions are on the actual input, and the first is the actual output unless the layer is protected."""
    plan, x = device.plan, inputs[0]
    protected = index in plan.protected

    def more(first: int, count: int) -> list[Activation]:
        first += PROTECTED_REPLICAS * plan.run
        return device.accelerator.run_replicas(index, x, iteration=device.iteration, count=count, first=first)

    if plan.referee:
        settled = settle(
            more,
            lambda positions: device.engine.elements(index, x, positions),
            lambda: device.engine.fault_free(index, [x]),
            layer.weight[0].size,
            plan.longest,
        )
        replicas = list(settled.replicas)
        if protected and len(replicas) < PROTECTED_REPLICAS:
            # Of a layer that ran three times or more these are the same again, as the faults are keyed by the replica.
            replicas += more(len(replicas), PROTECTED_REPLICAS - len(replicas))
        executed = Executed(index, replicas, protected=protected, settled=settled)
    else:
        count = max(plan.replicas, PROTECTED_REPLICAS) if protected else plan.replicas
        executed = Executed(index, more(0, count), protected=protected, again=plan.run > 0)
    return executed, [None if protected else executed.replicas[0]]


def _beside_votes(device: _Device, index: int, layer: Conv, inputs: list[Activation]) -> Ran:
    """The actual pass, and one whose layers run ``plan.replicas`` times and go on with their vote: layer-wise TMR."""
    x, reference = inputs
    # Replica 0 is the actual execution; the TMR run beside it draws its own faults.
    runs = device.accelerator.run_replicas(
        index, reference, iteration=device.iteration, count=device.plan.replicas, first=1
    )  # fmt: skip
    actual = device.accelerator.run_layer(index, x, iteration=device.iteration)
    return Executed(index, runs, actual=actual, direct=index in device.plan.direct), [actual, None]


def _beside_runs(device: _Device, index: int, layer: Conv, inputs: list[Activation]) -> Ran:
    """The actual pass, and ``plan.replicas`` more that each go on with their own outputs: network-wise TMR."""
    x, *references = inputs
    runs = [
        device.accelerator.run_layer(index, reference, iteration=device.iteration, replica=replica)
        for replica, reference in enumerate(references, start=1)
    ]
    actual = device.accelerator.run_layer(index, x, iteration=device.iteration)
    return Executed(index, runs, actual=actual, direct=index in device.plan.direct), [actual, *runs]


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a generator of segments returned."""

    value: T


def advance(steps: Generator[Segment, Votes | None, T], votes: Votes | None) -> Segment | Done[T]:
    """The next segment, or the end: a generator's return value cannot cross a thread as StopIteration."""
    try:
        return steps.send(votes)
    except StopIteration as stop:
        return Done(stop.value)


def similarity(
    network: Network, engine: Engine, accelerator: Accelerator, plan: Plan, seed: int
) -> Generator[Segment, Votes | None, dict[int, float]]:
    """Share (0 to 1) of each MAC layer's actual outputs that equal the vote, on one random input (section V.C).

    As ``execute``, but that every segment awaits its votes. What the scheme's threshold is compared with.
    """
    x = np.random.default_rng(seed).integers(-128, 128, (1, *network.input_shape), np.int8)
    steps = execute(network, engine, accelerator, x, SIMILARITY, plan)
    shares: dict[int, float] = {}
    votes: Votes | None = None
    while not isinstance(segment := advance(steps, votes), Done):
        segment.awaits_vote = True
        actual = {executed.index: executed.actual for executed in segment.layers}
        votes = yield segment
        if votes is None:
            raise RuntimeError("the similarity of layers needs their votes, but none were sent")
        shares |= {index: float(np.mean(y == votes[index])) for index, y in actual.items()}
    return shares
