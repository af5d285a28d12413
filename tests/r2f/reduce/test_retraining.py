"""A chip's course: weights that it cannot hold stay 0, any amount is a stop of one course, and errors say what to do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from torch import nn

from accelsim.datasets import Dataset, load
from accelsim.engine import reference
from accelsim.faults import Rates, chip
from accelsim.faults.mapping import magnitude
from accelsim.faults.permanent import FaultMap
from accelsim.faults.pruning import kept, pruned
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.int8.parameters import dequantize
from accelsim.timing import Array
from r2f import prepare, settings
from r2f.reduce import course, damage
from r2f.reduce.course import Images
from r2f.reduce.retraining import job_of, networks
from services.trainer.core import rate, recipe
from services.trainer.core.job import Job
from services.trainer.core.optimiser import masked
from services.trainer.core.step import Learner, Received, averaged, holding, start, step

STOPS = (0, 4, 7, 12)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def network(data: Dataset, trained: nn.Module) -> Network:
    return prepare.lowered(settings.parse({}), data, trained)


@pytest.fixture(scope="module")
def job(network: Network, data: Dataset) -> Job:
    return job_of(settings.parse({"ber": 0, "batch": 16}), network, data, STOPS[-1])


@pytest.fixture(scope="module")
def faults() -> FaultMap:
    return chip.random_map(Array(rows=16, columns=16), 0.1, seed=1)


@pytest.fixture(scope="module")
def judged(data: Dataset) -> Images:
    return Images(data.test_images[:100], data.test_labels[:100])


def test_the_job_has_no_end_in_its_schedule(job: Job) -> None:
    assert (job.recipe.schedule, job.recipe.selection, job.iterations) == ("constant", 0, STOPS[-1])
    with pytest.raises(ValueError, match="--method correct"):
        job_of(settings.parse({"method": "correct"}), None, None, 4)  # type: ignore[arg-type]


def test_weights_that_the_chip_cannot_hold_stay_zero(network: Network, data: Dataset, job: Job, faults: FaultMap) -> None:
    sound = kept(network, faults)
    dropped = sum(int((~each).sum()) for each in sound.values())
    assert dropped > 300
    found = dict(networks(network, sound, data, job, STOPS))
    assert [*found] == list(STOPS)
    assert storage.digest(found[0]) == storage.digest(pruned(network, faults))
    for each in found.values():
        for index, layer in each.convs():
            assert not layer.weight[~sound[index]].any()
    last = dict(found[12].convs())
    assert any((layer.weight != last[index].weight).any() for index, layer in found[4].convs())


def test_masters_momentum_and_average_stay_zero_too(network: Network, data: Dataset, job: Job, faults: FaultMap) -> None:
    from accelsim.engine import Engine

    sound = kept(network, faults)
    decaying = msgspec.structs.replace(job, sgd=msgspec.structs.replace(job.sgd, weight_decay=0.01))
    plan = recipe.plan(decaying, len(data.train_images))
    learner = Learner(plan, Engine(network), holding(start(decaying, network), sound), kept=sound)
    learner.state = learner.state._replace(iteration=plan.corrections)
    for done in range(plan.corrections, plan.corrections + 3):
        engine = Engine(learner.state.network)
        images = data.train_images[plan.samples(done)]
        outputs = engine.run(network.quantize_images(images))
        step(learner, engine, Received(images, dict(enumerate(outputs)), None), None)
    state = learner.state
    for kind in (state.parameters, state.velocity, state.average):
        for index, (weight, bias) in kind.items():
            assert not weight[~sound[index]].any()
            assert weight[sound[index]].any()
            assert bias.any()


def test_a_gradient_is_masked_and_a_bias_is_not(network: Network, faults: FaultMap) -> None:
    import torch

    sound = kept(network, faults)
    ones = {index: (torch.ones(layer.weight.shape), torch.ones(len(layer.bias))) for index, layer in network.convs()}
    for index, (weight, bias) in masked(ones, sound).items():
        assert np.array_equal(weight.numpy(), sound[index].astype(np.float32))
        assert bias.numpy().all()


def test_a_run_of_an_amount_is_that_stop_of_a_longer_one(
    network: Network, data: Dataset, job: Job, faults: FaultMap, judged: Images
) -> None:
    saliency = magnitude(network)
    for mapping in (False, True):
        long = {}
        for found, (own,) in course.courses(network, faults, saliency, data, job, STOPS, [judged], mapping=mapping):
            long[own.points[-1].iterations] = storage.digest(found), own.points[-1]
        assert len({digest for digest, _ in long.values()}) == len(STOPS)
        for amount in (0, 7, 12):
            found, result = course.retrained(network, faults, saliency, data, job, amount, judged, mapping=mapping)
            assert result.sha256 == storage.digest(found) == long[amount][0]
            assert (result.accuracy, result.error) == (long[amount][1].accuracy, long[amount][1].error)


def test_without_faults_it_is_the_ordinary_learner(network: Network, data: Dataset, job: Job) -> None:
    """No weight is dropped: masks of ones change no bit of what the plain steps do."""
    from accelsim.engine import Engine
    from services.trainer.core.step import correct
    from services.views import seen

    whole = chip.random_map(Array(), 0.0, seed=0)
    found = dict(networks(network, kept(network, whole), data, job, [12]))[12]
    plan = recipe.plan(job, len(data.train_images))
    learner = Learner(plan, Engine(network), start(job, network))
    for done in range(12):
        engine = Engine(learner.state.network)
        images = seen(data.train_images[plan.samples(done)], plan.view(done))
        received = Received(images, dict(enumerate(reference.run(engine.network, network.quantize_images(images)))), None)
        if done < plan.corrections:
            correct(learner, engine, received)
        else:
            step(learner, engine, received, None)
    assert storage.digest(averaged(learner)) == storage.digest(found)
    assert learner.state.seen != rate.Seen()


def test_soft_errors_come_on_top(network: Network, data: Dataset, job: Job, faults: FaultMap, judged: Images) -> None:
    soft = msgspec.structs.replace(job, rates=Rates.uniform(2e-3), evaluation_seeds=(7, 8))
    assert course.right(network, soft, judged).shape == (2, 100)
    assert course.right(network, job, judged).shape == (1, 100)
    sound = kept(network, faults)
    a, b = (dict(networks(network, sound, data, each, [7]))[7] for each in (soft, job))
    assert storage.digest(a) != storage.digest(b)


def test_retraining_wins_back_what_pruning_lost(network: Network, data: Dataset, faults: FaultMap) -> None:
    own = job_of(settings.parse({"ber": 0, "batch": 32}), network, data, 60)
    judged = Images(data.test_images, data.test_labels)
    saliency = magnitude(network)
    ((_, (bare,)), (_, (after,))) = course.courses(network, faults, saliency, data, own, [0, 60], [judged])
    ((_, (moved,)),) = course.courses(network, faults, saliency, data, own, [0], [judged], mapping=True)
    clean = 100 * float(course.right(network, own, judged).mean())
    before, won = bare.points[0].accuracy, after.points[-1].accuracy
    assert before < clean - 5
    assert won > before + 0.5 * (clean - before)
    assert moved.damage < 0.9 * bare.damage
    assert moved.points[0].accuracy > before
    assert after.points[-1].error < bare.points[0].error


@pytest.mark.parametrize("stops", [(4, 4), (5, 3), (-1, 2), (0, 13)])
def test_stops_that_are_none_are_named(
    network: Network, data: Dataset, job: Job, faults: FaultMap, stops: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"expected ascending numbers from 0 to the job's 12 iterations"):
        list(networks(network, kept(network, faults), data, job, stops))


def test_an_error_counts_only_images_that_changed_sides() -> None:
    healthy = np.array([[True] * 90 + [False] * 10])
    found = healthy.copy()
    assert course.point(3, found, healthy) == course.Point(iterations=3, accuracy=90.0, error=0.0)
    found[0, :4] = False
    found[0, 90:92] = True
    made = course.point(3, found, healthy)
    change = np.array([-1.0] * 4 + [1.0] * 2 + [0.0] * 94)
    assert made.accuracy == 88.0
    assert made.error == pytest.approx(100 * change.std(ddof=1) / 10)


def test_saliency_tells_a_weight_that_matters(network: Network, data: Dataset) -> None:
    found = damage.saliency(network, data.train_images[:64])
    again = damage.saliency(network, data.train_images[:64])
    weights = dequantize(network)
    for index, layer in network.convs():
        assert found[index].shape == layer.weight.shape
        assert (found[index] >= 0).all()
        assert not found[index][layer.weight == 0].any()
        assert np.array_equal(found[index], again[index])
        assert found[index].any()
        assert np.isfinite(weights[index][0]).all()


def test_a_table_reads_back(tmp_path: Path) -> None:
    """What a fleet's worker gets and gives are plain structs."""
    one = course.Result(chip="a", iterations=3, sha256="b", accuracy=90.0, error=1.0)
    assert msgspec.json.decode(msgspec.json.encode(one), type=course.Result) == one
