"""One iteration of learning against its parts, and that nothing changes where it cannot be made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.int8.parameters import dequantize, quantize
from accelsim.lowering import lower
from services.trainer.core import optimiser, step
from services.trainer.core.job import Job
from services.trainer.core.optimiser import TrainingDiverged
from services.trainer.core.replay import replay
from services.trainer.core.step import Learner, Received
from services.trainer.core.task import Sgd

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(16) % 10


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return lower(zoo.build("digits_cnn", 10).eval(), IMAGES, (0.5,), (0.25,), name="small")


def job(**changes: object) -> Job:
    return Job(
        **{"session": "s", "device": "d", "rates": Rates(), "iterations": 3, "batch": 4, "sgd": Sgd(rate=0.05)} | changes
    )


def received(engine: Engine, **labels: object) -> Received:
    outputs = engine.run(engine.network.quantize_images(IMAGES))
    activations = {index: outputs[index] for index, _ in engine.network.convs()}
    return Received(**{"images": IMAGES, "activations": activations, "device_labels": LABELS} | labels)


def learner(network: Network, todo: Job) -> Learner:
    return step.learner(todo, network, step.start(todo, network), "portable")


def test_a_step_is_replay_optimiser_and_quantising(network: Network) -> None:
    engine, todo = Engine(network, "portable"), job()
    learning = learner(network, todo)
    got = step.step(learning, network, engine, received(engine), 0, None)
    found = replay(network, network.quantize_images(IMAGES), received(engine).activations, LABELS, engine.fault_free)
    parameters = dequantize(network)
    optimiser.step(parameters, optimiser.zeros_like(parameters), found, todo.sgd)
    assert storage.digest(got.network) == storage.digest(quantize(network, parameters)) != storage.digest(network)
    assert (got.loss, got.correct, got.norm) == (found.loss, found.correct, found.norm)
    assert got.backward_s > 0 < got.quantise_s


def test_labels_come_from_where_the_job_says(network: Network) -> None:
    engine = Engine(network, "portable")
    answers = engine.run(network.quantize_images(IMAGES))[-1].reshape(16, 10).argmax(axis=1)

    def correct(source: str, **labels: object) -> int:
        return step.step(learner(network, job(labels=source)), network, engine, received(engine, **labels), 0, None).correct

    assert correct("teacher") == 16
    assert correct("device") == int((answers == LABELS).sum()) < 16
    assert correct("server", server_labels=answers) == 16
    with pytest.raises(ValueError, match="come from the server, which gave none"):
        correct("server")


def test_what_diverges_changes_nothing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(network, "portable")
    learning = learner(network, job())
    before = {index: (w.copy(), b.copy()) for index, (w, b) in learning.parameters.items()}
    monkeypatch.setattr(step, "replay", lambda *given: replay(*given)._replace(norm=float("nan")))
    with pytest.raises(TrainingDiverged, match=r"iteration 7: .* is runs/x"):
        step.step(learning, network, engine, received(engine), 7, "runs/x")
    for index, pair in before.items():
        for old, new in zip(pair, learning.parameters[index], strict=True):
            np.testing.assert_array_equal(old, new)


def test_samples_are_drawn_without_repeats_in_an_order_that_the_seed_and_a_checkpoint_keep(network: Network) -> None:
    first, second = learner(network, job(seed=4)), learner(network, job(seed=4))
    draws = [step.draw(first, 30).tolist() for _ in range(4)]
    assert all(len(set(drawn)) == 4 for drawn in draws)
    assert [step.draw(second, 30).tolist() for _ in range(2)] == draws[:2]
    state = step.start(job(seed=4), network)._replace(generator=dict(second.order.bit_generator.state))
    resumed = step.learner(job(seed=4), network, state, "portable")
    assert [step.draw(resumed, 30).tolist() for _ in range(2)] == draws[2:]
    assert sorted(step.draw(first, 3).tolist()) == [0, 1, 2]
    assert step.draw(learner(network, job(seed=5)), 30).tolist() != draws[0]
