"""Losses and their gradients against torch.autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from accelsim.int8.network import INPUT, Flatten, Network
from services.trainer.core.loss import Soft, Targets, loss

SCALE = 0.0625
LAYER = Flatten(name="flat", inputs=(INPUT,), shape=(1, 1, 3), scale=SCALE)
NETWORK = Network(
    name="made", input_shape=(1, 1, 3), input_scale=SCALE, input_table=np.zeros((3, 256), np.int8), layers=(LAYER,)
)
OUTPUT = np.array([[[[-100, 90, 0]]], [[[5, 4, 4]]]], np.int8)
SOFT = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], np.float32)
HARD = np.array([1, 0])


def autograd(labels: Soft) -> tuple[float, torch.Tensor]:
    logits = (torch.from_numpy(OUTPUT.reshape(2, 3).astype(np.float64)) * SCALE).requires_grad_()
    t = labels.temperature
    log_p = functional.log_softmax(logits / t, dim=1)
    value = t * t * functional.kl_div(log_p, torch.from_numpy(labels.probabilities).double(), reduction="batchmean")
    if labels.hard is not None:
        value = (1 - labels.share) * value + labels.share * functional.cross_entropy(logits, torch.from_numpy(labels.hard))
    value.backward()
    return value.item(), logits.grad


@pytest.mark.parametrize("labels", [Soft(SOFT), Soft(SOFT, 2.0), Soft(SOFT, 4.0, HARD, 0.3), Soft(SOFT, 1.0, HARD, 1.0)])
def test_soft_labels_at_a_temperature_mixed_with_hard_ones(labels: Soft) -> None:
    value, gradient = autograd(labels)
    found = loss(NETWORK, OUTPUT, labels)
    assert found.value == pytest.approx(value, rel=1e-5)
    assert found.gradient.shape == (2, 3, 1, 1)
    torch.testing.assert_close(found.gradient[:, :, 0, 0].double(), gradient, rtol=1e-4, atol=1e-7)
    assert found.correct == 1  # the first


def test_a_device_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    logits = OUTPUT.reshape(2, 3).astype(np.float64) * SCALE / 2
    same = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    found = loss(NETWORK, OUTPUT, Soft(same, 2.0))
    assert found.value == pytest.approx(0, abs=1e-6)
    assert found.gradient.abs().max() < 1e-6
    assert found.correct == 2


def test_labels_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"labels have shape \(2, 2\), expected \(2,\) or \(2, 3\)"):
        loss(NETWORK, OUTPUT, Soft(SOFT[:, :2]))
    with pytest.raises(ValueError, match="labels run from 0 to 3"):
        loss(NETWORK, OUTPUT, np.array([0, 3]))


def image_network(channels: int) -> Network:
    layer = Flatten(name="flat", inputs=(INPUT,), shape=(4, 5, channels), scale=SCALE)
    table = np.zeros((channels, 256), np.int8)
    return Network(name="made", input_shape=(4, 5, channels), input_scale=SCALE, input_table=table, layers=(layer,))


IMAGE = np.random.default_rng(0).integers(-128, 128, (3, 4, 5, 4)).astype(np.int8)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_the_distance_of_images_is_torchs(criterion: str) -> None:
    wanted = np.random.default_rng(1).normal(0, 4, IMAGE.shape).astype(np.float32)
    found = loss(image_network(4), IMAGE, Targets(wanted, criterion, span=2.0))  # type: ignore[arg-type]
    given = (torch.from_numpy(IMAGE.astype(np.float64)) * SCALE).requires_grad_()
    of = functional.l1_loss if criterion == "l1" else functional.mse_loss
    value = of(given / 2, torch.from_numpy(wanted).double() / 2)
    value.backward()
    assert found.value == pytest.approx(value.item(), rel=1e-5)
    assert (found.correct, tuple(found.gradient.shape)) == (0, (3, 4, 4, 5))
    torch.testing.assert_close(found.gradient.double(), given.grad.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", ["numbers", "probabilities", "soft"])
def test_cross_entropy_of_each_pixel_is_torchs(kind: str) -> None:
    random = np.random.default_rng(1)
    hard, soft = random.integers(0, 4, (3, 4, 5)), random.dirichlet(np.ones(4), (3, 4, 5)).astype(np.float32)
    given = (torch.from_numpy(IMAGE.astype(np.float64)) * SCALE).requires_grad_()
    planes = given.permute(0, 3, 1, 2)
    if kind == "soft":
        log_p = functional.log_softmax(planes / 2, dim=1)
        value = 4 * functional.kl_div(log_p, torch.from_numpy(soft).double().permute(0, 3, 1, 2), reduction="sum") / 60
    else:
        wanted = torch.from_numpy(hard) if kind == "numbers" else torch.from_numpy(soft).double().permute(0, 3, 1, 2)
        value = functional.cross_entropy(planes, wanted)
    value.backward()
    labels = {"numbers": hard, "probabilities": soft, "soft": Soft(soft, 2.0)}[kind]
    found = loss(image_network(4), IMAGE, labels)
    assert found.value == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(found.gradient.double(), given.grad.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-7)


def test_images_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"target images have shape \(3, 4, 5, 3\), expected \(3, 4, 5, 4\)"):
        loss(image_network(4), IMAGE, Targets(np.zeros((3, 4, 5, 3), np.float32)))
    with pytest.raises(ValueError, match=r"labels have shape \(3,\), expected \(3, 4, 5\) or \(3, 4, 5, 4\)"):
        loss(image_network(4), IMAGE, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="labels run from 4 to 4"):
        loss(image_network(4), IMAGE, np.full((3, 4, 5), 4))
