"""What protection costs, counted again by hand, and that the images that choose it are used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.datasets import Dataset
from accelsim.faults import Rates
from accelsim.int8.network import Conv, Network
from accelsim.lowering import lower
from accelsim.timing import Array, layer_cycles
from experiments.common import protecting
from r2f import inprocess
from r2f.settings import parse
from services.edge_agent.core.answer import margins
from services.scheme import Port, Scheme

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
SEEDS = (1001, 1002)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return lower(zoo.build("digits_cnn"), IMAGES, (0.5,), (0.25,), "digits_cnn")


def cycles(network: Network) -> dict[int, int]:
    return {i: layer_cycles(layer, network.shape_of(layer.inputs[0]), Array()) for i, layer in network.convs()}


def test_layers_cost_two_more_runs_each(network: Network) -> None:
    work = cycles(network)
    chosen = sorted(work)[:2]
    found = protecting.cost(network, Scheme(protected=tuple(chosen)), IMAGES, Rates(), SEEDS)
    assert found == pytest.approx(2 * sum(work[i] for i in chosen) / sum(work.values()))
    assert protecting.cost(network, Scheme(protected=tuple(work)), IMAGES, Rates(), SEEDS) == pytest.approx(2)
    assert protecting.cost(network, Scheme(), IMAGES, Rates(), SEEDS) == 0


def test_a_port_costs_little_and_adds_up(network: Network) -> None:
    first = min(cycles(network))
    port = protecting.cost(network, Scheme(ports=(Port(first, "weight"),)), IMAGES, Rates(), SEEDS)
    assert 0 < port < 0.2
    both = protecting.cost(network, Scheme(ports=(Port(first, "weight"),), tmr="network"), IMAGES, Rates(), SEEDS)
    assert both == pytest.approx(2 + port)


@pytest.mark.parametrize(("tmr", "runs"), [("layer", 3), ("network", 2)])
def test_uncertain_images_cost_the_share_of_them_that_is_run(network: Network, tmr: str, runs: int) -> None:
    rates = Rates.uniform(1e-3)
    outputs = inprocess.outputs(network, IMAGES, rates, SEEDS, scheme=Scheme(codec="direct"), batch=16)
    threshold = int(np.median(margins(outputs[0])))
    share = np.mean([margins(each) < threshold for each in outputs])
    assert 0.2 < share < 0.8
    scheme = Scheme(tmr=tmr, uncertain=threshold)  # type: ignore[arg-type]
    assert protecting.cost(network, scheme, IMAGES, rates, SEEDS) == pytest.approx(runs * share)


def test_what_is_chosen_fits_the_budget_on_the_images_that_chose(network: Network) -> None:
    rates = Rates.uniform(2e-3)
    for by in ("algorithm1", "estimated"):
        choice = protecting.choice(network, IMAGES, rates, 0.5, by)  # type: ignore[arg-type]
        assert 0 < choice.overhead <= 0.5 + 1e-9
        measured = protecting.cost(network, choice.applied(Scheme()), IMAGES, rates, protecting.SEEDS)
        assert measured == pytest.approx(choice.overhead, abs=1e-3)


def test_the_network_that_answers_most_like_the_exact_one_is_taken(network: Network) -> None:
    """Whatever its place; without a budget nothing is asked."""
    data = Dataset(
        name="noise", mean=(0.5,), std=(0.25,),
        train_images=IMAGES, train_labels=np.zeros(40, np.int64), test_images=IMAGES[:8], test_labels=np.zeros(8, np.int64),
    )  # fmt: skip
    settings = parse({"ber": 1e-3, "codec": "direct", "batch": 8})
    last = network.layers[-1]
    assert isinstance(last, Conv)
    mute = replace(network, layers=(*network.layers[:-1], replace(last, weight=np.zeros_like(last.weight))))
    for networks in ([mute, network], [network, mute]):
        assert protecting.fitting(settings, networks, network, data, 0.5, "estimated") is network
        assert protecting.fitting(settings, networks, network, data, 0.0, "estimated") is networks[0]
