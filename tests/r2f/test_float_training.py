from __future__ import annotations

import pytest
import torch

from accelsim import zoo
from accelsim.datasets import load
from r2f.float_training import accuracy, train


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_learns_digits(trained, digits) -> None:
    assert accuracy(trained, digits.test_images, digits.test_labels, digits) >= 97
    assert not trained.training


def test_the_seed_decides_and_nothing_else(digits) -> None:
    def weights(seed: int) -> torch.Tensor:
        module = train(lambda: zoo.build("digits_cnn", classes=10), digits, seed=seed, epochs=1)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = weights(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)
