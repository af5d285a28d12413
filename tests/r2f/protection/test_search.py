"""Both searches on the demo's trained network: what is estimated, what is measured once, what comes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from accelsim.datasets import load
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from r2f import inprocess
from r2f.protection import estimate
from r2f.protection.estimate import Harm
from r2f.protection.judge import Judge, Score
from r2f.protection.plan import Choice, Plan
from r2f.protection.search import How, joined, search
from r2f.protection.units import SITES, Unit, costs, overhead, units
from services.scheme import Port, Scheme
from services.trainer.core import objective

DIGITS = load("digits")
RATES = Rates.uniform(2e-3)
IMAGES = DIGITS.train_images[1:240:4]


@pytest.fixture(scope="module")
def network(trained: nn.Module) -> Network:
    return lower(trained, DIGITS.train_images[::5], DIGITS.mean, DIGITS.std, name="digits_cnn", activations="signed")


@pytest.fixture(scope="module")
def harm(network: Network) -> Harm:
    return estimate.measure(network, IMAGES[:24], RATES, 1, draws=2)


def test_the_harm_of_a_site_is_what_its_faults_alone_do(network: Network) -> None:
    """An accelerator with faults at one site of all layers, of a network that has one layer more that counts."""
    rates = Rates(weight=0.02)
    found = estimate.measure(network, IMAGES[:2], rates, 7)
    assert set(found.alone) == {(i, s) for i, _ in network.convs() for s in ("", *SITES)}
    for (_, site), change in found.alone.items():
        assert change.shape == (2, 10)
        assert site in ("", "weight") or not change.any()
    assert sum(change.any() for (_, site), change in found.alone.items() if site == "weight") > 3
    x = network.quantize_images(IMAGES[:2])
    clean = Engine(network).run(x)[-1].reshape(2, 10) * np.float32(network.layers[-1].scale)
    np.testing.assert_allclose(found.outputs, clean, rtol=1e-6)


def test_without_faults_there_is_no_harm(network: Network) -> None:
    found = estimate.measure(network, IMAGES[:4], Rates(), 1)
    assert not any(change.any() for change in found.alone.values())
    assert found.agreement(found.change(())) == 100
    assert estimate.choose(found, costs(network, units(network, "layers"), How().array, 16, "cycles"), 1.0) == []


def test_changes_add_up_over_what_is_left_unprotected(harm: Harm) -> None:
    layers = sorted({layer for layer, _ in harm.alone})
    every = sum(harm.alone[layer, site] for layer in layers for site in SITES)
    np.testing.assert_allclose(harm.change(()), every, atol=1e-3)
    chosen = [Unit(layers[0]), Unit(layers[1], "weight")]
    expected = every - sum(harm.alone[layers[0], site] for site in SITES) - harm.alone[layers[1], "weight"]
    np.testing.assert_allclose(harm.change(chosen), expected + harm.alone[layers[0], ""], atol=1e-3)
    # One by one is the same as all at once, a whole layer behind one of its sites too.
    step = harm.change(()) + harm.saved(Unit(layers[1], "weight"), [])
    step = step + harm.saved(Unit(layers[1]), [Unit(layers[1], "weight")])
    np.testing.assert_allclose(step, harm.change([Unit(layers[1])]), atol=1e-3)


def test_the_estimate_is_near_the_truth_where_errors_are_few(network: Network, harm: Harm) -> None:
    """Where they are many they saturate, and their sum says too much."""
    rates = Rates.uniform(7e-4)
    bare = Judge(network, IMAGES, rates, (1, 2, 3), batch=2)(Scheme()).mean
    few = estimate.measure(network, IMAGES, rates, 4)
    assert bare < 98
    assert abs(few.agreement(few.change(())) - bare) < 6
    all_of_it = [Unit(layer) for layer, site in harm.alone if site == ""]
    assert harm.agreement(harm.change(all_of_it)) > harm.agreement(harm.change(())) + 10


def test_what_was_measured_is_not_measured_again(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "evaluations.jsonl"
    seen: list[bool] = []
    judge = Judge(network, IMAGES, RATES, (1, 2), cache=file, watch=lambda _, known: seen.append(known))
    found = judge(Scheme()), judge(Scheme(protected=(0,)))
    # Only protection counts, and a line that was cut off by a kill is dropped.
    file.write_bytes(file.read_bytes() + b'{"key":"ab')
    again = Judge(network, IMAGES, RATES, (1, 2), cache=file, watch=lambda _, known: seen.append(known))
    monkeypatch.setattr(inprocess, "outputs", None)
    assert (again(Scheme(codec="direct")), again(Scheme(protected=(0,)))) == found
    assert seen == [False, False, True, True]
    assert (judge.count, again.count) == (2, 2)
    with pytest.raises(TypeError):
        again(Scheme(ports=(Port(0, "weight"),)))


def test_others_images_seeds_or_rates_are_other_measurements(network: Network, tmp_path: Path) -> None:
    file = tmp_path / "evaluations.jsonl"
    scores = [
        Judge(network, IMAGES, RATES, (1, 2), cache=file)(Scheme()),
        Judge(network, IMAGES, RATES, (3, 4), cache=file)(Scheme()),
        Judge(network, IMAGES[:30], RATES, (1, 2), cache=file)(Scheme()),
        Judge(network, IMAGES, Rates.uniform(1e-3), (1, 2), cache=file)(Scheme()),
    ]
    assert len(file.read_bytes().splitlines()) == len(set(scores)) == 4


def test_a_cache_that_is_none_is_named(network: Network, tmp_path: Path) -> None:
    file = tmp_path / "evaluations.jsonl"
    file.write_bytes(b"hello\n")
    with pytest.raises(ValueError, match=r"evaluations\.jsonl: .*delete it"):
        Judge(network, IMAGES, RATES, (1,), cache=file)


def test_a_score_tells_how_many_images_are_uncertain(network: Network) -> None:
    score = Judge(network, IMAGES, RATES, (1, 2))(Scheme())
    assert isinstance(score, Score)
    assert score.margins[-1][1] == 1.0
    margins, shares = zip(*score.margins, strict=True)
    assert list(margins) == sorted(set(margins))
    assert list(shares) == sorted(set(shares))


def test_likeness_is_what_probabilities_share_with_the_right_ones(network: Network) -> None:
    (clean,) = inprocess.outputs(network, IMAGES, Rates(), (1,))
    right = objective.probabilities(network, clean, 1.0)
    found = Judge(network, IMAGES, RATES, (1, 2), right=right)(Scheme())
    outputs = inprocess.outputs(network, IMAGES, RATES, (1, 2), batch=16)
    each = [100 * float(np.minimum(objective.probabilities(network, y, 1.0), right).sum(1).mean()) for y in outputs]
    assert found.likeness == pytest.approx(np.mean(each))
    assert 50 < np.mean(each) < 99
    assert Judge(network, IMAGES, Rates(), (1,), right=right)(Scheme()).likeness == pytest.approx(100)
    assert Judge(network, IMAGES, RATES, (1, 2))(Scheme()).likeness is None


def test_each_budget_has_the_network_that_then_answers_best() -> None:
    def one(share: float, small: float, large: float) -> tuple[float, Plan, Judge]:
        choices = tuple(
            Choice(budget=budget, overhead=0.1, layers=layers, agreement=(1.0,))
            for budget, layers in ((0.2, (0,)), (0.5, (0, 1)))
        )
        plan = Plan(
            network="n", sha256=f"of {share}", rates=RATES, vote="median", search="estimated", units="layers", cost="cycles",
            batch=16, images=1, seeds=(1,), unprotected=(share,), evaluations=2.25, sensitivities=(), choices=choices,
        )  # fmt: skip
        likeness = {(0,): small, (0, 1): large}
        return share, plan, lambda scheme: Score(agreement=(0.0,), likeness=likeness[scheme.protected])  # type: ignore[return-value]

    how = How(budgets=(0.2, 0.5))
    found = joined([one(1.0, 80, 90), one(0.5, 80, 92), one(0.25, 70, 91)], how)
    assert [(choice.quantised_for, choice.sha256) for choice in found.choices] == [(1.0, "of 1.0"), (0.5, "of 0.5")]
    assert (found.sha256, found.quantised_for, found.unprotected, found.evaluations) == ("of 1.0", 1.0, (1.0,), 6.75)
    (share, plan, _) = alone = one(0.25, 1, 1)
    assert [choice.quantised_for for choice in joined([alone], how).choices] == [share] * 2
    assert joined([alone], how).sha256 == plan.sha256


def test_estimates_reach_algorithm_1_with_a_tenth_of_its_evaluations(network: Network) -> None:
    plans = {}
    for name in ("algorithm1", "estimated"):
        judge = Judge(network, IMAGES, RATES, (1, 2, 3, 4), batch=16)
        plans[name] = search(judge, How(budgets=(0.8,), search=name, uncertain=False))  # type: ignore[arg-type]
    paper, ours = plans["algorithm1"], plans["estimated"]
    assert paper.sha256 == ours.sha256 == storage.digest(network)
    assert paper.unprotected == ours.unprotected
    for plan in plans.values():
        (choice,) = plan.choices
        spent = overhead(
            [Unit(layer) for layer in choice.layers], costs(network, units(network, "layers"), How().array, 16, "cycles")
        )
        assert spent == pytest.approx(choice.overhead, abs=1e-5)
        assert choice.overhead <= 0.8
        assert np.mean(choice.agreement) > np.mean(plan.unprotected) + 5
    assert np.mean(ours.choices[0].agreement) > np.mean(paper.choices[0].agreement) - 3
    assert ours.evaluations < paper.evaluations / 7


def test_sites_and_uncertain_images_stay_within_the_budget(network: Network) -> None:
    judge = Judge(network, IMAGES, RATES, (1, 2), batch=16)
    plan = search(judge, How(budgets=(0.6, 0.3), units="sites"))
    assert [choice.budget for choice in plan.choices] == [0.3, 0.6]
    for choice in plan.choices:
        assert choice.overhead <= choice.budget + 1e-6
        assert judge(choice.applied(Scheme())).agreement == choice.agreement
    assert {(s.layer, s.site) for s in plan.sensitivities} == {(i, s) for i, _ in network.convs() for s in ("", *SITES)}
