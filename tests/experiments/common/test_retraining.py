"""A retraining's small arithmetic and its options."""

from __future__ import annotations

import argparse

from experiments.common import retraining
from r2f import settings as r2f_settings
from services.trainer.core.evaluation import Evaluation


def test_an_accuracy_is_mean_and_deviation_of_one_metric() -> None:
    found = Evaluation(samples=10, top1=[10.0, 20.0], top5=[50.0, 50.0])
    assert retraining.over(found, "top1") == retraining.Accuracy(15.0, 5.0, 2)
    assert retraining.over(found, "top5") == retraining.Accuracy(50.0, 0.0, 2)


def test_the_metric_is_the_papers() -> None:
    assert [retraining.metric(classes) for classes in (10, 1000)] == ["top1", "top5"]


def test_evaluations_never_have_the_trainings_faults() -> None:
    seeds = retraining.fault_seeds(5)
    assert len(set(seeds)) == 5
    assert r2f_settings.Settings().seed not in seeds


def test_options_of_the_recipe_become_settings() -> None:
    parser = argparse.ArgumentParser()
    retraining.add_recipe(parser)
    given = vars(parser.parse_args(["--lr", "0.25", "--codec", "direct", "--referee", "false"]))
    settings = r2f_settings.parse(retraining.given_recipe(given))
    assert (settings.sgd.rate, settings.scheme.codec, settings.scheme.referee) == (0.25, "direct", False)
    assert settings.iterations == r2f_settings.Settings().iterations


def test_a_result_says_its_recipe_and_no_path() -> None:
    recipe = retraining.recipe(r2f_settings.parse({"iterations": 3, "data": "/somewhere/a.npz", "weights": "/somewhere/b"}))
    assert recipe["iterations"] == 3
    assert recipe["codec"] == "chained"
    assert not any("somewhere" in str(value) for value in recipe.values())
