"""The loop in one process: what codecs may change and what they may not, and that nothing hangs on anything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.accelerators import Simulated
from accelsim.datasets import Dataset, load
from accelsim.engine import reference
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from r2f.inprocess import evaluate, retrain
from services.scheme import Scheme
from services.trainer.core.job import Job
from services.trainer.core.task import PAPER, Sgd

RATES = Rates(input=5e-4, weight=5e-4, output=5e-4)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def network(digits: Dataset) -> Network:
    torch.manual_seed(0)
    module = zoo.build("digits_cnn", classes=10).eval()
    return lower(module, digits.train_images[:64], digits.mean, digits.std, name="digits_cnn")


def job(**settings: object) -> Job:
    plain = {"recipe": PAPER, "labels": "device", "sgd": Sgd(rate=0.01)}
    return Job(**{"session": "s", "device": "d", "rates": RATES, "iterations": 3, "batch": 8} | plain | settings)


def test_exact_chained_ends_with_the_model_of_direct(network: Network, digits: Dataset) -> None:
    direct = retrain(network, digits, job(scheme=Scheme(codec="direct")))
    chained = retrain(network, digits, job(scheme=Scheme(codec="chained")))
    again = retrain(network, digits, job(scheme=Scheme(codec="chained")))
    assert storage.digest(direct.network) != storage.digest(network)
    assert storage.digest(chained.network) == storage.digest(direct.network) == storage.digest(again.network)
    for a, b in zip(direct.iterations, chained.iterations, strict=True):
        assert (a.loss, a.grad_norm, a.elements, a.mismatched) == (b.loss, b.grad_norm, b.elements, 0)
        assert b.layer_bytes < a.layer_bytes / 2


def test_plain_votes_err_and_say_so(network: Network, digits: Dataset) -> None:
    many = Rates(input=4e-3, weight=4e-3, output=4e-3)
    found = retrain(network, digits, job(rates=many, scheme=Scheme(referee=False, exact=False)))
    assert 0 < sum(i.mismatched for i in found.iterations) < sum(i.elements for i in found.iterations)
    assert sum(i.repaired for i in found.iterations) == 0


def test_seed_iteration_and_device_decide_the_faults(network: Network, digits: Dataset) -> None:
    def model(**settings: object) -> str:
        return storage.digest(retrain(network, digits, job(scheme=Scheme(codec="direct"), iterations=2, **settings)).network)

    assert len({model(), model(seed=1), model(device="other"), model(rates=Rates())}) == 4


def test_a_sample_crosses_the_link_once(network: Network, digits: Dataset) -> None:
    few = Dataset(
        name="few", train_images=digits.train_images[:8], train_labels=digits.train_labels[:8],
        test_images=digits.test_images[:8], test_labels=digits.test_labels[:8], mean=digits.mean, std=digits.std,
    )  # fmt: skip
    found = retrain(network, few, job())
    assert [i.input_bytes > 0 for i in found.iterations] == [True, False, False]
    assert found.other_model_bytes > 3 * found.iterations[0].model_bytes > 0


def test_without_labels_the_teacher_gives_them(network: Network, digits: Dataset) -> None:
    """A fault-free device that answers as its teacher does has nothing to learn but certainty."""
    found = retrain(network, digits, job(labels="teacher", rates=Rates(), iterations=1))
    assert found.iterations[0].correct == 8
    soft = retrain(network, digits, job(labels="teacher-soft", rates=Rates(), iterations=1))
    assert soft.iterations[0].grad_norm < 1e-5


def test_evaluation_counts_right_answers(network: Network, digits: Dataset) -> None:
    images, labels = digits.test_images[:40], digits.test_labels[:40]
    outputs = reference.run(network, network.quantize_images(images))[-1].reshape(40, -1).astype(int)
    rank = [sorted(range(10), key=lambda c: -row[c]).index(label) for row, label in zip(outputs, labels, strict=True)]
    found = evaluate(network, images, labels, Rates(), [1, 2], batch=16)
    assert found.top1 == pytest.approx([100 * np.mean(np.array(rank) < 1)])
    assert found.top5 == pytest.approx([100 * np.mean(np.array(rank) < 5)])
    faulty = evaluate(network, images, labels, Rates(weight=0.01), [1, 2, 1], batch=16)
    assert len(faulty.top1) == 3
    assert faulty.top1[0] == faulty.top1[2]


def test_any_accelerator_may_be_the_device(network: Network, digits: Dataset) -> None:
    made: list[tuple[Rates, int, str]] = []

    def build(rates: Rates, seed: int, device: str) -> Simulated:
        made.append((rates, seed, device))
        return Simulated(Rates(), seed, device)

    perfect = retrain(network, digits, job(), accelerator=build)
    assert storage.digest(perfect.network) == storage.digest(retrain(network, digits, job(rates=Rates())).network)
    assert made == [(RATES, 0, "d")] * 3


def test_what_the_golden_codec_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="with codec golden no layers are protected"):
        job(scheme=Scheme(codec="golden", protected=(0,)))
