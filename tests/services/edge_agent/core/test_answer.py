"""Network-wise and layer-wise TMR, for all images or the uncertain ones, against the same written down plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8.network import INPUT, Activation, Conv, Network
from accelsim.lowering import lower
from services.edge_agent.core.answer import answer, margins
from services.edge_agent.core.forward import Done, advance
from services.edge_agent.core.plan import ports_of
from services.scheme import Port, Redundancy, Scheme, Vote, check
from services.voter.core.ballot import count
from services.voter.core.vote import vote as voted

RATES = Rates.uniform(2e-3)
ITERATION = 5


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


def inputs(network: Network) -> Activation:
    return network.quantize_images(np.random.default_rng(1).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8))


def run(network: Network, accelerator: Simulated, x: Activation, scheme: Scheme) -> Activation:
    """The device's answer, with the voter's part played here."""
    steps = answer(network, Engine(network, "portable"), accelerator, x, ITERATION, scheme)
    votes = None
    while not isinstance(segment := advance(steps, votes), Done):
        ballots = {e.index: count(e.replicas, scheme.vote, protected=e.protected) for e in segment.layers}
        votes = {i: b.protected for i, b in ballots.items() if b.protected is not None} if segment.awaits_vote else None
    return segment.value


def layer_wise(accelerator: Simulated, x: Activation, kind: Vote, first: int) -> Activation:
    """Each layer three times, executions ``first`` and on, and the vote to the next one."""
    network, engine = accelerator.engine.network, Engine(accelerator.engine.network, "portable")
    values: dict[int, Activation] = {INPUT: x}
    for index, layer in enumerate(network.layers):
        operands = [values[i] for i in layer.inputs]
        if isinstance(layer, Conv):
            runs = [accelerator.run_layer(index, operands[0], iteration=ITERATION, replica=first + i) for i in range(3)]
            values[index] = voted(runs, kind)
        else:
            values[index] = engine.fault_free(index, operands)
    return values[len(network.layers) - 1]


def once(accelerator: Simulated, x: Activation, replica: int) -> Activation:
    """The network once, every layer its execution ``replica``."""
    network, engine = accelerator.engine.network, Engine(accelerator.engine.network, "portable")
    values: dict[int, Activation] = {INPUT: x}
    for index, layer in enumerate(network.layers):
        operands = [values[i] for i in layer.inputs]
        faulty = isinstance(layer, Conv)
        values[index] = (
            accelerator.run_layer(index, operands[0], iteration=ITERATION, replica=replica)
            if faulty
            else engine.fault_free(index, operands)
        )
    return values[len(network.layers) - 1]


@pytest.mark.parametrize("kind", ["median", "bitwise"])
def test_layer_wise(network: Network, accelerator: Simulated, kind: Vote) -> None:
    x = inputs(network)
    found = run(network, accelerator, x, Scheme(tmr="layer", vote=kind))
    np.testing.assert_array_equal(found, layer_wise(accelerator, x, kind, 0))
    assert not np.array_equal(found, once(accelerator, x, 0))


@pytest.mark.parametrize("kind", ["median", "bitwise"])
def test_network_wise(network: Network, accelerator: Simulated, kind: Vote) -> None:
    x = inputs(network)
    runs = [once(accelerator, x, replica) for replica in (0, 3, 6)]
    found = run(network, accelerator, x, Scheme(tmr="network", vote=kind))
    np.testing.assert_array_equal(found, voted(runs, kind))
    assert not np.array_equal(found, runs[0])


@pytest.mark.parametrize("tmr", ["layer", "network"])
def test_only_uncertain_images_run_again(network: Network, accelerator: Simulated, tmr: Redundancy) -> None:
    x = inputs(network)
    first = once(accelerator, x, 0)
    threshold = int(np.median(margins(first))) + 1
    chosen = margins(first) < threshold
    assert 0 < chosen.sum() < len(x)
    again = x[chosen]
    expected = first.copy()
    if tmr == "layer":
        expected[chosen] = layer_wise(accelerator, again, "median", 3)
    else:
        expected[chosen] = voted([first[chosen], once(accelerator, again, 3), once(accelerator, again, 6)], "median")
    found = run(network, accelerator, x, Scheme(tmr=tmr, uncertain=threshold))
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, first)


def test_where_every_answer_is_certain_nothing_runs_again(network: Network, accelerator: Simulated) -> None:
    x = inputs(network)
    first = once(accelerator, x, 0)
    least = int(margins(first).min())
    if least == 0:
        x = np.ascontiguousarray(x[margins(first) > 0])
        first = once(accelerator, x, 0)
        least = int(margins(first).min())
    np.testing.assert_array_equal(run(network, accelerator, x, Scheme(tmr="layer", uncertain=least)), first)


def test_margins_are_between_the_two_largest() -> None:
    outputs = np.array([[5, -3, 4], [7, 7, -128], [-128, 127, 0]], np.int8).reshape(3, 1, 1, 3)
    assert margins(outputs).tolist() == [1, 0, 127]
    assert margins(outputs.view(np.uint8)).tolist() == [253 - 5, 128 - 7, 1]
    with pytest.raises(ValueError, match="no margin"):
        margins(np.zeros((1, 2, 2, 3), np.int8))


def test_network_wise_needs_its_vote(network: Network, accelerator: Simulated) -> None:
    steps = answer(network, Engine(network, "portable"), accelerator, inputs(network), 5, Scheme(tmr="network"))
    with pytest.raises(RuntimeError, match="awaits the vote"):
        list(steps)


def test_what_the_network_does_not_have_is_refused(network: Network) -> None:
    with pytest.raises(ValueError, match=r"layer 3 cannot be protected; MAC layers of small are 0, 1, 2, 4"):
        check(Scheme(protected=(3,)), network)
    with pytest.raises(ValueError, match="layer 99 cannot be protected"):
        check(Scheme(ports=(Port(99, "weight"),)), network)
    with pytest.raises(ValueError, match="needs tmr"):
        Scheme(uncertain=3)


def test_sites_by_layer() -> None:
    ports = ports_of(Scheme(ports=(Port(0, "weight"), Port(2, "input"), Port(0, "output"))))
    assert ports == {0: {"weight", "output"}, 2: {"input"}}
