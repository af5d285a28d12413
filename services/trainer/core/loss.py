"""What the device's outputs are held against, and how far they are from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accelsim.int8.network import Activation, Network


class Soft(NamedTuple):
    """Class probabilities (N, classes) float32 of a teacher whose outputs were divided by ``temperature``.

    ``hard`` are class numbers (N,) int64, against which a ``share`` of the loss is.
    """

    probabilities: npt.NDArray[np.float32]
    temperature: float = 1.0
    hard: npt.NDArray[np.int64] | None = None
    share: float = 0.0


Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32] | Soft
"""Class numbers (N,) int64, or class probabilities (N, classes) float32, or those with a temperature."""


class Loss(NamedTuple):
    """Averaged over a batch. ``gradient`` is at the network's output, (N, C, 1, 1) float32, in real units."""

    value: float
    correct: int
    """Images whose largest output is the largest label's."""
    gradient: Tensor


def loss(network: Network, output: Activation, labels: Labels) -> Loss:
    """The softmax cross-entropy of an output (N, 1, 1, C) against labels.

    Of ``Soft`` labels the part against the teacher is T^2 KL(teacher || device), both at temperature T (Hinton et al. 2015,
    section 2.1): 0 where the two agree, and as steep at any temperature. Raises ValueError if the labels do not fit.
    """
    classes = network.layers[-1].shape[2]
    if network.layers[-1].shape[:2] != (1, 1):
        raise ValueError(f"the network's output has shape {network.layers[-1].shape}, expected one vector an image")
    logits = torch.from_numpy(output.reshape(len(output), classes).astype(np.float32)) * network.layers[-1].scale
    if not isinstance(labels, Soft):
        value, gradient, best = _cross_entropy(logits, labels)
    else:
        value, gradient, best = _divergence(logits, labels)
        if labels.hard is not None and labels.share:
            other, at, _ = _cross_entropy(logits, labels.hard)
            value = (1 - labels.share) * value + labels.share * other
            gradient = (1 - labels.share) * gradient + labels.share * at
    return Loss(float(value), int((logits.argmax(dim=1) == best).sum()), gradient[:, :, None, None])


def _cross_entropy(logits: Tensor, labels: npt.NDArray[np.int64] | npt.NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient (N, C), and the class (N,) that would be right."""
    count, classes = logits.shape
    targets = _fitting(labels, count, classes)
    if targets.ndim == 1:
        best = targets
        targets = torch.nn.functional.one_hot(targets, classes).float()
    else:
        best = targets.argmax(dim=1)
    log_probability = torch.log_softmax(logits, dim=1)
    value = -(targets * log_probability).sum() / count
    return value, (log_probability.exp() * targets.sum(dim=1, keepdim=True) - targets) / count, best


def _divergence(logits: Tensor, labels: Soft) -> tuple[Tensor, Tensor, Tensor]:
    count, classes = logits.shape
    targets, temperature = _fitting(labels.probabilities, count, classes), labels.temperature
    log_probability = torch.log_softmax(logits / temperature, dim=1)
    value = temperature**2 * torch.nn.functional.kl_div(log_probability, targets, reduction="batchmean")
    return value, temperature * (log_probability.exp() - targets) / count, targets.argmax(dim=1)


def _fitting(labels: npt.NDArray[np.int64] | npt.NDArray[np.float32], count: int, classes: int) -> Tensor:
    if labels.shape not in ((count,), (count, classes)):
        raise ValueError(f"labels have shape {labels.shape}, expected {(count,)} or {(count, classes)}")
    if labels.ndim == 1:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(f"labels run from {low} to {high}, but the network knows classes 0 to {classes - 1}")
    return torch.tensor(labels)
