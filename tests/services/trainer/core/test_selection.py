"""What is deployed: what agrees better, by more than chance."""

from __future__ import annotations

import numpy as np
import pytest

from accelsim.int8.network import INPUT, Flatten, Network
from services.trainer.core import selection
from services.trainer.core.selection import first, further, gained, is_better
from services.trainer.core.task import Task


def network(scale: float = 0.1) -> Network:
    layer = Flatten(name="flat", inputs=(INPUT,), shape=(1, 1, 3), scale=scale)
    table = np.zeros((3, 256), np.int8)
    return Network(name="made", input_shape=(1, 1, 3), input_scale=scale, input_table=table, layers=(layer,))


def test_agreement_is_what_two_distributions_share() -> None:
    outputs = np.array([[[[0, 0, 0]]], [[[127, -128, -128]]]], np.int8)
    truth = np.array([[0.5, 0.25, 0.25], [0.25, 0.75, 0]], np.float32)
    found = selection.agreement(Task(), network(), outputs, truth)
    np.testing.assert_allclose(found, [1 / 3 + 0.5, 0.25], atol=1e-6)
    label = np.eye(3, dtype=np.float32)[[0, 0]]
    np.testing.assert_allclose(selection.agreement(Task(), network(), outputs, label), [1 / 3, 1], atol=1e-6)


def test_agreement_of_images_is_how_far_they_are_apart_and_of_masks_the_mean_over_pixels() -> None:
    layer = Flatten(name="flat", inputs=(INPUT,), shape=(2, 2, 3), scale=0.5)
    table = np.zeros((3, 256), np.int8)
    made = Network(name="made", input_shape=(2, 2, 3), input_scale=0.5, input_table=table, layers=(layer,))
    outputs = np.random.default_rng(0).integers(-2, 3, (4, 2, 2, 3)).astype(np.int8)
    truth = np.random.default_rng(1).uniform(-1, 1, outputs.shape).astype(np.float32)
    task = Task(metric="psnr", loss="l2", output_range=(-1.0, 1.0))
    apart = np.sqrt(((outputs * 0.5 - truth) ** 2).mean(axis=(1, 2, 3))) / 2
    np.testing.assert_allclose(selection.agreement(task, made, outputs, truth), 1 - apart, atol=1e-6)
    assert selection.agreement(task, made, outputs, truth + 100).tolist() == [0, 0, 0, 0]
    shares = np.random.default_rng(1).dirichlet(np.ones(3), (4, 2, 2)).astype(np.float32)
    p = np.exp(outputs * 0.5) / np.exp(outputs * 0.5).sum(axis=3, keepdims=True)
    wanted = [np.mean([np.minimum(p[i, y, x], shares[i, y, x]).sum() for y in (0, 1) for x in (0, 1)]) for i in range(4)]
    found = selection.agreement(Task(metric="miou", loss="cross-entropy"), made, outputs, shares)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_error_of_a_gain_is_that_of_samples_and_of_seeds_paired() -> None:
    rng = np.random.default_rng(0)
    before = rng.random((4, 50), np.float32)
    gain, error = gained(before, before + np.float32(0.125))
    assert (gain, error) == (pytest.approx(12.5), pytest.approx(0, abs=1e-5))
    gains = rng.normal(0.1, 0.3, (4, 50))
    gain, error = gained(np.zeros((4, 50), np.float32), gains.astype(np.float32))
    expected = np.sqrt(gains.mean(axis=0).var(ddof=1) / 50 + gains.mean(axis=1).var(ddof=1) / 4)
    assert (gain, error) == (pytest.approx(100 * gains.mean(), rel=1e-5), pytest.approx(100 * expected, rel=1e-5))


def test_only_what_is_better_beyond_its_error_takes_the_place_of_the_one_before() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.2, (5, 40)).astype(np.float32)
    start, other, third = network(), network(), network()
    tried = first(start, np.zeros((40, 3), np.float32), np.full((5, 40), 0.5, np.float32))
    assert tried.best is start
    assert not is_better(tried)
    level = 0.5 + noise - noise.mean()
    within = further(tried, "a", other, level + np.float32(1e-3))
    assert within.best is other
    assert not is_better(within)
    beyond = further(within, "b", third, level + np.float32(0.1))
    assert (beyond.best, beyond.best_name) == (third, "b")
    assert is_better(beyond)
    worse = further(beyond, "c", start, np.full((5, 40), 0.1, np.float32))
    assert (worse.best, [one.name for one in worse.candidates]) == (third, ["before", "a", "b", "c"])
    assert [round(one.gain) for one in worse.candidates] == [0, 0, 10, -40]
