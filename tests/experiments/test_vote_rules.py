"""The tally of wrong and open elements against counting them one by one, and that the rules chosen are among those measured."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from experiments import vote_rules
from experiments.vote_rules import MOST, RULES, Measured, rows, summary, tally
from services.edge_agent.core import referee


@pytest.mark.parametrize("share", [0.0, 0.05, 0.6])
def test_tally_counts_what_the_words_say(share: float) -> None:
    generator = np.random.default_rng(0)
    golden = generator.integers(-128, 128, (2, 5, 5, 8), dtype=np.int8)
    replicas = [np.where(generator.random(golden.shape) < share, golden ^ np.int8(1), golden) for _ in range(MOST)]
    opened, wrong = [0] * len(RULES), [0] * len(RULES)
    columns = np.stack([replica.ravel() for replica in replicas]).T.tolist()
    for column, right in zip(columns, golden.ravel().tolist(), strict=True):
        for i, (executions, agree) in enumerate(RULES):
            value, times = Counter(column[:executions]).most_common(1)[0]
            opened[i] += times < agree
            wrong[i] += times >= agree and value != right
    u, open_found, wrong_found = tally(replicas, golden)
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
