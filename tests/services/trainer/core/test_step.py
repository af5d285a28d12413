"""One iteration of learning against its parts, and that nothing changes where it cannot be made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.int8.parameters import dequantize, quantize
from accelsim.lowering import lower
from services.trainer.core import optimiser, recipe, step
from services.trainer.core.job import Job
from services.trainer.core.optimiser import TrainingDiverged
from services.trainer.core.replay import Gradients, replay
from services.trainer.core.step import Learner, Received
from services.trainer.core.task import PAPER, Sgd

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(16) % 10


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return lower(zoo.build("digits_cnn", 10).eval(), IMAGES, (0.5,), (0.25,), name="small")


def job(**changes: object) -> Job:
    return Job(
        **{
            "session": "s", "device": "d", "rates": Rates(), "iterations": 3, "batch": 4, "sgd": Sgd(rate=0.05, clip=5.0),
            "recipe": PAPER, "labels": "device",
        } | changes
    )  # fmt: skip


def received(engine: Engine, **labels: object) -> Received:
    outputs = engine.run(engine.network.quantize_images(IMAGES))
    activations = {index: outputs[index] for index, _ in engine.network.convs()}
    return Received(**{"images": IMAGES, "activations": activations, "device_labels": LABELS} | labels)


def learner(network: Network, todo: Job) -> Learner:
    return Learner(recipe.plan(todo, 100), Engine(network, "portable"), step.start(todo, network))


def gradients(network: Network, engine: Engine) -> Gradients:
    found = replay(network, network.quantize_images(IMAGES), received(engine).activations, LABELS, engine.fault_free)
    return found.gradients


def test_a_plain_step_is_replay_optimiser_and_quantising(network: Network) -> None:
    engine, todo = Engine(network, "portable"), job()
    learning = learner(network, todo)
    got = step.step(learning, engine, received(engine), None)
    parameters = dequantize(network)
    optimiser.step(parameters, optimiser.zeros_like(parameters), gradients(network, engine), todo.sgd, 0.05, 5.0)
    expected = quantize(network, parameters)
    assert storage.digest(got.network) == storage.digest(expected) != storage.digest(network)
    assert storage.digest(learning.state.network) == storage.digest(step.averaged(learning)) == storage.digest(expected)
    assert learning.state.iteration == 1
    assert got.norm == pytest.approx(optimiser.norm(gradients(network, engine)))
    assert got.backward_s > 0 < got.quantise_s


def test_gathered_batches_make_one_update_by_their_mean(network: Network) -> None:
    engine = Engine(network, "portable")
    gathering = learner(network, job(recipe=replace(PAPER, accumulate=2)))
    first = step.step(gathering, engine, received(engine), None)
    assert first.network is network
    assert gathering.gathered is not None
    second = step.step(gathering, engine, received(engine), None)
    assert gathering.gathered is None
    # The mean of twice the same is that.
    once = step.step(learner(network, job()), engine, received(engine), None)
    assert storage.digest(second.network) == storage.digest(once.network)
    last = step.step(gathering, Engine(second.network, "portable"), received(engine), None)
    assert last.network is not second.network  # the run ends, so what has gathered is used


def test_the_average_is_of_all_weights_at_first_and_of_the_last_ones_later(network: Network) -> None:
    learning = learner(network, job(iterations=60, recipe=replace(PAPER, average=0.5)))
    engine = Engine(network, "portable")
    expected = None
    for update in range(10):
        made = step.step(learning, engine, received(engine), None)
        engine = Engine(made.network, "portable")
        now = {index: w.copy() for index, (w, _) in learning.state.parameters.items()}
        kept = min(0.5, update / (update + 5))
        expected = now if expected is None else {i: kept * expected[i] + (1 - kept) * now[i] for i in now}
    for index, (weight, _) in learning.state.average.items():
        np.testing.assert_allclose(weight, expected[index], rtol=1e-4, atol=1e-6)
    assert storage.digest(step.averaged(learning)) != storage.digest(learning.state.network)


def test_half_the_gradient_may_be_the_fault_free_networks(network: Network) -> None:
    """On a device without faults the two halves are the same."""
    engine = Engine(network, "portable")
    mixed = step.step(learner(network, job(recipe=replace(PAPER, clean=0.5))), engine, received(engine), None)
    plain = step.step(learner(network, job()), engine, received(engine), None)
    for (_, a), (_, b) in zip(mixed.network.convs(), plain.network.convs(), strict=True):
        assert np.abs(a.weight.astype(int) - b.weight).max() <= 1
    wrong = received(engine)
    wrong.activations[max(wrong.activations)][...] = 0  # a device that has no opinion
    clean = step.step(learner(network, job(recipe=replace(PAPER, clean=1.0))), engine, wrong, None)
    assert storage.digest(clean.network) == storage.digest(plain.network)


def test_labels_come_from_where_the_job_says(network: Network) -> None:
    engine = Engine(network, "portable")
    answers = engine.run(network.quantize_images(IMAGES))[-1].reshape(16, 10).argmax(axis=1)

    def correct(source: str, **labels: object) -> int:
        return step.step(learner(network, job(labels=source)), engine, received(engine, **labels), None).correct

    assert correct("teacher") == correct("teacher-soft") == 16
    assert correct("device") == int((answers == LABELS).sum()) < 16
    assert correct("server", server_labels=answers) == 16
    with pytest.raises(ValueError, match="come from the server, which gave none"):
        correct("server")


def test_what_diverges_changes_nothing(network: Network, tmp_path: Path) -> None:
    engine = Engine(network, "portable")
    learning = learner(network, job())
    learning.state = learning.state._replace(iteration=2)
    before = optimiser.copied(learning.state.parameters)
    learning.replaying = lambda *given: replay(*given)._replace(norm=float("nan"))
    with pytest.raises(TrainingDiverged, match=r"iteration 2: .* no checkpoint was written yet"):
        step.step(learning, engine, received(engine), tmp_path / "x")
    (tmp_path / "x").touch()
    with pytest.raises(TrainingDiverged, match=r"iteration 2: .* is .*/x"):
        step.step(learning, engine, received(engine), tmp_path / "x")
    for index, pair in before.items():
        for old, new in zip(pair, learning.state.parameters[index], strict=True):
            np.testing.assert_array_equal(old, new)
