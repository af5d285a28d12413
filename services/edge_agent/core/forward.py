"""One forward pass of the device, as a generator of segments: what the accelerator computed, ready for the voter."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from accelsim.accelerators import Accelerator
from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Conv, Int8, Layer, Network
from services.edge_agent.core.referee import SHORT, Settled, settle
from services.scheme import SEGMENT_BYTES, Redundancy


@dataclass(slots=True)
class Executed:
    """The executions of one MAC layer on one input, each int8 (N, H, W, C).

    ``actual`` is the output that fed the next layer where it is not ``replicas[0]``. ``settled`` is what the referee says
    of the vote over them, where there is one.
    """

    index: int
    replicas: list[Int8]
    actual: Int8 | None = None
    protected: bool = False
    settled: Settled | None = None
    direct: bool = False
    """Of the golden codec: under the similarity threshold, so its outputs go as they are."""

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


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each MAC layer runs.

    ``replicas``: executions of each layer on its actual input (1 for the direct codec, 3 or more for chained).
    ``protected``: layers whose vote over three runs goes on (section V.B). ``golden``: beside the actual pass run a
    TMR pass of ``replicas`` executions (section V.C), whose votes are the reference of the increments. Layer-wise the vote
    goes on to its next layer, network-wise each of its runs goes on with its own outputs and waits for no vote.
    ``referee``: as many executions as the layer needs, in place of ``replicas`` (see ``core.referee``), ``longest`` MACs
    an output being what ``referee.short`` says of the link.
    """

    replicas: int
    protected: frozenset[int] = frozenset()
    golden: Redundancy | None = None
    referee: bool = False
    longest: int = SHORT
    direct: frozenset[int] = frozenset()
    """Of the golden codec: the layers under the similarity threshold."""


Votes = dict[int, Int8]
"""Vote of each layer of the segment last yielded, by layer index."""

PROTECTED_REPLICAS = 3


def execute(
    network: Network, engine: Engine, accelerator: Accelerator, x: Int8, iteration: int, plan: Plan
) -> Generator[Segment, Votes | None, Int8]:
    """Run ``network`` on ``x`` (N, H, W, C) and yield every MAC layer's executions, in order.

    MAC layers run on the accelerator and may be wrong; the others run exactly, on the general-purpose processor
    (architecture.md, "Arithmetic"). Returns the actual output of the last layer, (N, 1, 1, C).

    The caller sends back the votes of a segment that awaits them, and None otherwise. Replicas are many times as large as
    the layer: the caller empties the segment's layers (``Segment.done``) before it goes on.
    """
    last_use = _last_uses(network)
    actual: dict[int, Int8] = {INPUT: x}
    # Of the golden codec's TMR pass: the outputs that its runs go on with, one dict for all of them or one for each.
    references: list[dict[int, Int8]] = [{INPUT: x} for _ in range(plan.replicas if plan.golden == "network" else 1)]
    segment, gathered = Segment(), 0
    for index, layer in enumerate(network.layers):
        if isinstance(layer, Conv):
            executed = _run(engine, accelerator, index, layer, actual, references, iteration, plan)
            waits = plan.golden == "layer" or executed.protected
            segment.layers.append(executed)
            gathered += executed.replicas[0].nbytes
            actual[index] = executed.replicas[0] if executed.actual is None else executed.actual
            if plan.golden == "network":
                for reference, run in zip(references, executed.replicas, strict=True):
                    reference[index] = run
            votes: Votes | None = None
            if waits or gathered >= SEGMENT_BYTES:
                segment.awaits_vote = waits
                votes = yield segment
                segment, gathered = Segment(), 0
            if waits and votes is None:
                raise RuntimeError(f"layer {index} ({layer.name}) awaits its vote, but none was sent")
            if executed.protected and votes is not None:
                actual[index] = votes[index]
            if plan.golden == "layer" and votes is not None:
                references[0][index] = votes[index]
        else:
            actual[index] = engine.fault_free(index, [actual[i] for i in layer.inputs])
            if plan.golden:
                for reference in references:
                    reference[index] = engine.fault_free(index, [reference[i] for i in layer.inputs])
        for operand in layer.inputs:
            if last_use[operand] == index:
                actual.pop(operand, None)
                for reference in references:
                    reference.pop(operand, None)
    if segment.layers:
        yield segment
    return actual[len(network.layers) - 1]


def _run(
    engine: Engine,
    accelerator: Accelerator,
    index: int,
    layer: Conv,
    actual: dict[int, Int8],
    references: list[dict[int, Int8]],
    iteration: int,
    plan: Plan,
) -> Executed:
    operand = layer.inputs[0]
    if plan.golden:
        # Replica 0 is the actual execution; the TMR run beside it draws its own faults.
        if plan.golden == "layer":
            runs = accelerator.run_replicas(index, references[0][operand], iteration=iteration, count=plan.replicas, first=1)
        else:
            runs = [
                accelerator.run_layer(index, reference[operand], iteration=iteration, replica=replica)
                for replica, reference in enumerate(references, start=1)
            ]
        one = accelerator.run_layer(index, actual[operand], iteration=iteration)
        return Executed(index, runs, actual=one, direct=index in plan.direct)
    protected = index in plan.protected
    if plan.referee:
        x = actual[operand]

        def more(first: int, count: int) -> list[Int8]:
            return accelerator.run_replicas(index, x, iteration=iteration, count=count, first=first)

        settled = settle(
            more,
            lambda positions: engine.elements(index, x, positions),
            lambda: engine.fault_free(index, [x]),
            layer.weight[0].size,
            plan.longest,
        )
        replicas = list(settled.replicas)
        if protected and len(replicas) < PROTECTED_REPLICAS:
            # Of a layer that ran three times or more these are the same again, as the faults are keyed by the replica.
            replicas += more(len(replicas), PROTECTED_REPLICAS - len(replicas))
        return Executed(index, replicas, protected=protected, settled=settled)
    count = max(plan.replicas, PROTECTED_REPLICAS) if protected else plan.replicas
    return Executed(
        index, accelerator.run_replicas(index, actual[operand], iteration=iteration, count=count), protected=protected
    )


def _last_uses(network: Network) -> dict[int, int]:
    """Index of the last layer that reads each activation, so that it can be dropped there: a device has 1 GB."""
    uses: dict[int, int] = {}
    layer: Layer
    for index, layer in enumerate(network.layers):
        uses.update(dict.fromkeys(layer.inputs, index))
    return uses
