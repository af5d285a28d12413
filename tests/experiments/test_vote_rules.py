"""The tally of wrong and open elements against counting them one by one, and that the rules chosen are among those measured."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from accelsim.accelerators import Simulated
from accelsim.faults import Rates
from accelsim.int8.network import INPUT
from accelsim.timing import layer_seconds, vote_seconds, write_back_seconds
from experiments import vote_rules
from experiments.common.networks import int8_network
from experiments.vote_rules import MOST, RULES, Measured, rows, summary, tally
from services.edge_agent.core import referee


@pytest.mark.parametrize("share", [0.0, 0.05, 0.6])
def test_tally_counts_what_the_words_say(share: float) -> None:
    generator = np.random.default_rng(0)
    fault_free = generator.integers(-128, 128, (2, 5, 5, 8), dtype=np.int8)
    replicas = [np.where(generator.random(fault_free.shape) < share, fault_free ^ np.int8(1), fault_free) for _ in range(MOST)]
    opened, wrong = [0] * len(RULES), [0] * len(RULES)
    columns = np.stack([replica.ravel() for replica in replicas]).T.tolist()
    for column, right in zip(columns, fault_free.ravel().tolist(), strict=True):
        for i, (executions, agree) in enumerate(RULES):
            value, times = Counter(column[:executions]).most_common(1)[0]
            opened[i] += times < agree
            wrong[i] += times >= agree and value != right
    u, open_found, wrong_found = tally(replicas, fault_free)
    assert u == np.mean(replicas[0] != replicas[1])
    assert open_found.tolist() == opened
    assert wrong_found.tolist() == wrong
    assert (sum(wrong) > 0) == (share > 0)


def layer(u: float, macs: int) -> Measured:
    size = len(RULES)
    return Measured(
        network="n", ber=1e-5, iteration=0, index=0, macs=macs, elements=1000, u=u, open=(10,) * size, wrong=tuple(range(size)),
        executing_s=tuple(float(n) for n, _ in RULES), once_s=1.0,
    )  # fmt: skip


@pytest.mark.parametrize("u", vote_rules.EDGES[1:])
@pytest.mark.parametrize("macs", [referee.BRIEF, 100, 5000])
def test_every_rule_of_the_referee_is_measured(u: float, macs: int) -> None:
    wrong, seconds = layer(u, macs).chosen()
    rule = referee.rule(u, macs)
    if rule is None or rule.agree > rule.executions:
        assert wrong == 0
    else:
        assert wrong == RULES.index((rule.executions, rule.agree))
    executions = referee.FIRST if rule is None else rule.executions
    assert executions <= seconds < executions + 0.01


def test_each_layer_that_is_voted_on_is_in_one_bin() -> None:
    layers = [layer(u, 100) for u in (0.0, *vote_rules.EDGES[1:])] + [layer(0.1, referee.BRIEF)]
    table = list(rows(layers))
    assert len(table) == len(vote_rules.EDGES) - 1
    assert [int(row.split("|")[2].split(",")[0]) for row in table] == [2, *[1] * (len(table) - 1)]
    assert len(list(summary(layers))) == 1


def test_a_row_is_what_the_layers_come_to() -> None:
    """Two networks' layers of one bin in one iteration each: rule i has i wrong a layer, 10 of 1000 open."""
    layers = [layer(0.0, 100), altered(layer(0.0, 100), network="m")]
    (row,) = rows(layers)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == [f"1e-05, 0-{100 * vote_rules.EDGES[1]:g} %", "2, 0.002 M"]
    for place, (rule, cell) in enumerate(zip(RULES, cells[2:], strict=True)):
        assert cell == f"{2 * place:,}; 1.00%; {layers[0].seconds(place):.3f} s"
        assert layers[0].seconds(place) == pytest.approx(rule[0] + referee.refereeing(10, 1000, 100))


def test_the_summary_is_an_iterations_average() -> None:
    layers = [layer(1.0, referee.BRIEF), altered(layer(1.0, referee.BRIEF), iteration=1)]
    (row,) = summary(layers)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    wrong, spent = layers[0].chosen()
    three, seven = (layers[0].seconds(RULES.index(rule)) for rule in ((3, 3), (7, 6)))
    assert cells == ["n", "1e-05", "2", f"{wrong:.2g}", f"{spent:.2f} s", f"{three:.2f} s", f"{seven:.2f} s"]


def altered(measured: Measured, **change: object) -> Measured:
    return dataclasses.replace(measured, **change)


def test_every_iteration_has_its_own_photos_and_a_large_batch_goes_round() -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None, None]
    taken = [vote_rules.batch(images, 4, iteration).ravel().tolist() for iteration in range(3)]
    assert taken == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert vote_rules.batch(images, 10, 1).ravel().tolist() == list(range(10))


def test_layers_are_measured_on_the_inputs_of_the_devices_own_run() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    network = int8_network("resnet20", None, images)
    found = list(vote_rules.measure(network, images, 1e-3, seed=2, iteration=5))
    assert [m.index for m in found] == [index for index, _ in network.convs()]
    device = Simulated(Rates.uniform(1e-3), 2)
    device.load(network)
    x = network.quantize_images(images)
    actual = {INPUT: x, **dict(enumerate(device.run(x, iteration=5)))}
    for measured in (found[0], found[12], found[-1]):
        conv = network.layers[measured.index]
        given = actual[conv.inputs[0]]
        replicas = device.run_replicas(measured.index, given, iteration=5, count=MOST)
        np.testing.assert_array_equal(replicas[0], actual[measured.index])
        u, opened, wrong = tally(replicas, device.engine.fault_free(measured.index, [given]))
        assert (measured.u, measured.open, measured.wrong) == (u, tuple(opened), tuple(wrong))
        assert measured.elements == 3 * int(np.prod(conv.shape))
        assert measured.macs == conv.weight[0].size
        shape = network.shape_of(conv.inputs[0])
        pass_s = layer_seconds(conv, shape, vote_rules.ARRAY, batch=3) + write_back_seconds(conv, vote_rules.ARRAY, batch=3)
        assert measured.once_s == pytest.approx(pass_s)
        for (executions, _), seconds in zip(RULES, measured.executing_s, strict=True):
            votes = vote_seconds(measured.elements, executions, vote_rules.ARRAY)
            assert seconds == pytest.approx(executions * pass_s + votes)
    assert {(m.network, m.ber, m.iteration) for m in found} == {("resnet20", 1e-3, 5)}
