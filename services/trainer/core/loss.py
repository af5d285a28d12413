"""What the device's outputs are held against, and how far they are from it."""

from __future__ import annotations

from typing import Literal, NamedTuple, assert_never

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


class Targets(NamedTuple):
    """Images (N, H, W, C) float32 in the units of the network's outputs, and how the distance from them is measured.

    Errors are in shares of ``span``, the difference of black and white.
    """

    images: npt.NDArray[np.float32]
    criterion: Literal["l1", "l2"] = "l2"
    span: float = 1.0


Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32] | Soft | Targets
"""Class numbers (N,) int64, or class probabilities (N, classes) float32, or those with a temperature; of each pixel, where the
output is an image: (N, H, W) and (N, H, W, classes). Or images."""


class Loss(NamedTuple):
    """Averaged over a batch. ``gradient`` is at the network's output, (N, C, H, W) float32, in real units."""

    value: float
    correct: int
    """Images whose largest output is the largest label's; 0 where outputs are images, of which none is simply right."""
    gradient: Tensor


def loss(network: Network, output: Activation, labels: Labels) -> Loss:
    """The distance of an output (N, H, W, C) from labels: the softmax cross-entropy of its vectors, or that from images.

    Of ``Soft`` labels the part against the teacher is T^2 KL(teacher || device), both at temperature T (Hinton et al. 2015,
    section 2.1): 0 where the two agree, and as steep at any temperature. Of an image it is the mean over its pixels, and
    of ``Targets`` the mean over all elements of the error or its square. Raises ValueError if the labels do not fit.
    """
    if isinstance(labels, Targets):
        return _distance(network, output, labels)
    height, width, classes = network.layers[-1].shape
    if (height, width) != (1, 1):
        flat = loss_of_vectors(network, output.reshape(-1, classes), _flattened(labels, output.shape))
        gradient = flat.gradient.reshape(*output.shape).permute(0, 3, 1, 2)
        return Loss(flat.value, 0, gradient.contiguous(memory_format=torch.channels_last))
    found = loss_of_vectors(network, output.reshape(len(output), classes), labels)
    return found._replace(gradient=found.gradient[:, :, None, None])


def loss_of_vectors(network: Network, output: Activation, labels: Labels) -> Loss:
    """The cross-entropy of vectors (N, C) of the network's output; the gradient is (N, C)."""
    logits = torch.from_numpy(output.astype(np.float32)) * network.layers[-1].scale
    assert not isinstance(labels, Targets)
    if not isinstance(labels, Soft):
        value, gradient, best = _cross_entropy(logits, labels)
    else:
        value, gradient, best = _divergence(logits, labels)
        if labels.hard is not None and labels.share:
            other, at, _ = _cross_entropy(logits, labels.hard)
            value = (1 - labels.share) * value + labels.share * other
            gradient = (1 - labels.share) * gradient + labels.share * at
    return Loss(float(value), int((logits.argmax(dim=1) == best).sum()), gradient)


def _distance(network: Network, output: Activation, labels: Targets) -> Loss:
    if labels.images.shape != output.shape:
        raise ValueError(f"target images have shape {labels.images.shape}, expected {output.shape}")
    error = torch.from_numpy(output.astype(np.float32)) * network.layers[-1].scale - torch.from_numpy(labels.images)
    error /= labels.span
    match labels.criterion:
        case "l1":
            value, gradient = error.abs().mean(dtype=torch.float64), error.sign()
        case "l2":
            value, gradient = error.square().mean(dtype=torch.float64), 2 * error
        case _:
            assert_never(labels.criterion)
    gradient = (gradient / (labels.span * error.numel())).permute(0, 3, 1, 2)
    return Loss(float(value), 0, gradient.contiguous(memory_format=torch.channels_last))


def _flattened(labels: Labels, shape: tuple[int, ...]) -> Labels:
    """Labels of every pixel of an output of that shape (N, H, W, C), one after the other."""
    if isinstance(labels, Soft):
        whole, hard = labels.probabilities, labels.hard
        if whole.shape != shape or (hard is not None and hard.shape != shape[:3]):
            raise ValueError(f"labels have shape {whole.shape}, expected {shape}")
        flat = None if hard is None else hard.reshape(-1)
        return labels._replace(probabilities=whole.reshape(-1, shape[3]), hard=flat)
    assert not isinstance(labels, Targets)
    if labels.shape not in (shape, shape[:3]):
        raise ValueError(f"labels have shape {labels.shape}, expected {shape[:3]} or {shape}")
    return labels.reshape(-1, shape[3]) if labels.ndim == 4 else labels.reshape(-1)


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
