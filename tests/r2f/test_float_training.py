from __future__ import annotations

import dataclasses

import pytest
import torch

from accelsim import zoo
from accelsim.datasets import load
from r2f.float_training import evaluate, train


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_learns_digits(trained, digits) -> None:
    assert evaluate(trained, digits.test_images, digits.test_labels, digits).top1[0] >= 97
    assert not trained.training


def test_is_measured_in_eval_mode_whatever_mode_the_module_is_in(trained, digits) -> None:
    expected = evaluate(trained, digits.test_images, digits.test_labels, digits)
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    trained.train()
    try:
        assert evaluate(trained, digits.test_images[:7], digits.test_labels[:7], digits).top1
        assert evaluate(trained, digits.test_images, digits.test_labels, digits) == expected
        assert trained.training
    finally:
        trained.eval()
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items()), "running statistics moved"


def test_too_few_images_are_refused_with_what_to_do(digits) -> None:
    few = dataclasses.replace(digits, train_images=digits.train_images[:15], train_labels=digits.train_labels[:15])
    with pytest.raises(ValueError, match=r"15 training images are too few .* --weights"):
        train(lambda: zoo.build("digits_cnn", classes=10), few)


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
