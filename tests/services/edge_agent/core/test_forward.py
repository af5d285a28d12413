"""The device's pass, a segment at a time, against the accelerator's own whole pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8.network import INPUT, Conv, Int8, Network
from accelsim.lowering import lower
from services.edge_agent.core import forward
from services.edge_agent.core.forward import Executed, Votes, execute
from services.edge_agent.core.plan import Plan
from services.scheme import Redundancy
from services.voter.core.vote import vote

RATES = Rates(input=1e-3, weight=1e-3, accumulator=0.0, output=1e-3)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    return lower(zoo.build("digits_cnn", 10).eval(), images, (0.5,), (0.25,), name="small")


@pytest.fixture
def accelerator(network: Network) -> Simulated:
    device = Simulated(RATES, seed=3, device="edge-0", path="portable")
    device.load(network)
    return device


def tmr_votes(accelerator: Simulated, x: Int8, iteration: int, redundancy: Redundancy) -> dict[int, Int8]:
    """Bitwise votes of every MAC layer over a TMR run apart from the actual one, written down as section V.C has it."""
    network, engine = accelerator.engine.network, accelerator.engine
    runs: list[dict[int, Int8]] = [{INPUT: x} for _ in range(1 if redundancy == "layer" else 3)]
    votes: dict[int, Int8] = {}
    for index, layer in enumerate(network.layers):
        if not isinstance(layer, Conv):
            for run in runs:
                run[index] = engine.fault_free(index, [run[i] for i in layer.inputs])
            continue
        operand = layer.inputs[0]
        if redundancy == "layer":
            replicas = accelerator.run_replicas(index, runs[0][operand], iteration=iteration, count=3, first=1)
            votes[index] = runs[0][index] = vote(replicas, "bitwise")
        else:
            for replica, run in enumerate(runs, start=1):
                run[index] = accelerator.run_layer(index, run[operand], iteration=iteration, replica=replica)
            votes[index] = vote([run[index] for run in runs], "bitwise")
    return votes


def collect(network: Network, accelerator: Simulated, x: Int8, plan: Plan) -> tuple[list[Executed], Int8, int]:
    """All executions, the output and the number of segments, with the voter's part played here."""
    steps = execute(network, Engine(network, "portable"), accelerator, x, 5, plan)
    executed: list[Executed] = []
    answer: Votes | None = None
    segments = 0
    while True:
        try:
            segment = steps.send(answer)
        except StopIteration as stop:
            return executed, stop.value, segments
        segments += 1
        executed += segment.layers
        answer = {e.index: vote(e.replicas, "median") for e in segment.layers} if segment.awaits_vote else None


def inputs(network: Network) -> Int8:
    return network.quantize_images(np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8))


def test_the_first_replica_is_the_pass_itself(network: Network, accelerator: Simulated) -> None:
    x = inputs(network)
    executed, output, _ = collect(network, accelerator, x, Plan(replicas=3))
    whole = accelerator.run(x, iteration=5)
    assert [e.index for e in executed] == [index for index, _ in network.convs()]
    for e in executed:
        np.testing.assert_array_equal(e.replicas[0], whole[e.index])
        assert len(e.replicas) == 3
    np.testing.assert_array_equal(output, whole[-1])


@pytest.mark.parametrize("limit", [1, 4096, 1 << 30])
def test_segments_change_nothing_but_their_number(
    network: Network, accelerator: Simulated, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "SEGMENT_BYTES", limit)
    executed, output, segments = collect(network, accelerator, inputs(network), Plan(replicas=1))
    assert segments == {1: len(executed), 1 << 30: 1}.get(limit, segments)
    np.testing.assert_array_equal(output, accelerator.run(inputs(network), iteration=5)[-1])


def test_a_protected_layers_vote_goes_on(network: Network, accelerator: Simulated) -> None:
    x = inputs(network)
    every = frozenset(index for index, _ in network.convs())
    _, output, _ = collect(network, accelerator, x, Plan(replicas=1, protected=every))
    values: dict[int, Int8] = {INPUT: x}
    engine = Engine(network, "portable")
    for index, layer in enumerate(network.layers):
        if isinstance(layer, Conv):
            runs = accelerator.run_replicas(index, values[layer.inputs[0]], iteration=5, count=3)
            values[index] = vote(runs, "median")
        else:
            values[index] = engine.fault_free(index, [values[i] for i in layer.inputs])
    np.testing.assert_array_equal(output, values[len(network.layers) - 1])
    assert not np.array_equal(output, accelerator.run(x, iteration=5)[-1])


@pytest.mark.parametrize("redundancy", ["layer", "network"])
@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_references_are_those_of_the_experiments(
    network: Network, accelerator: Simulated, redundancy: Redundancy, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "SEGMENT_BYTES", limit)
    x = inputs(network)
    steps = execute(network, Engine(network, "portable"), accelerator, x, 5, Plan(replicas=3, beside=redundancy))
    expected = tmr_votes(accelerator, x, 5, redundancy)
    votes: Votes = {}
    answer: Votes | None = None
    while True:
        try:
            segment = steps.send(answer)
        except StopIteration:
            break
        assert segment.awaits_vote == (redundancy == "layer")
        voted = {e.index: vote(e.replicas, "bitwise") for e in segment.layers}
        votes |= voted
        segment.done()  # as the agent does, whose memory is small
        answer = voted if segment.awaits_vote else None
    assert list(votes) == list(expected)
    for index, reference in expected.items():
        np.testing.assert_array_equal(votes[index], reference)
    other = tmr_votes(accelerator, x, 5, "network" if redundancy == "layer" else "layer")
    assert any(not np.array_equal(other[index], reference) for index, reference in expected.items())


@pytest.mark.parametrize("redundancy", ["layer", "network"])
def test_golden_runs_a_pass_beside_the_actual_one(network: Network, accelerator: Simulated, redundancy: Redundancy) -> None:
    x = inputs(network)
    executed, output, _ = collect(network, accelerator, x, Plan(replicas=3, beside=redundancy))
    whole = accelerator.run(x, iteration=5)
    for e in executed:
        assert e.actual is not None
        np.testing.assert_array_equal(e.actual, whole[e.index])
        assert not any(np.array_equal(e.actual, replica) for replica in e.replicas)
    np.testing.assert_array_equal(output, whole[-1])


def test_without_its_vote_a_protected_pass_stops(network: Network, accelerator: Simulated) -> None:
    steps = execute(network, Engine(network, "portable"), accelerator, inputs(network), 5, Plan(1, frozenset({0})))
    segment = next(steps)
    assert segment.awaits_vote
    with pytest.raises(RuntimeError, match=r"layer 0 .* awaits its vote"):
        steps.send(None)
