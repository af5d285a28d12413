"""Stochastic gradient descent with momentum on the float32 master weights, their running average, and the guards around it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from accelsim.faults.pruning import Kept
from accelsim.int8.parameters import Parameters
from services.trainer.core.replay import Gradients, Replay
from services.trainer.core.task import Sgd

_SPREAD = 0.99
"""What Adam's mean of squares keeps an update: runs are some hundred updates long, torch's 0.999 is made for longer ones."""
_LEAST = 1e-12
"""Of a root of squares; what has no gradient at all stays where it is."""


class TrainingDiverged(ValueError):
    """Loss or gradients stopped being finite; going on would only destroy the weights."""

    def __init__(self, iteration: int, loss: float, norm: float, checkpoint: str | None) -> None:
        saved = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
        super().__init__(
            f"training diverged at iteration {iteration}: loss {loss:g}, gradient norm {norm:g}; {saved}. "
            "Lower the learning rate or the bit error rate, or clip the gradients harder"
        )
        self.iteration = iteration
        self.loss = loss
        self.norm = norm
        self.checkpoint = checkpoint


def guard(replay: Replay, iteration: int, checkpoint: str | None) -> None:
    """Raises TrainingDiverged, naming the iteration and the last checkpoint, unless loss and gradients are finite."""
    if not (math.isfinite(replay.loss) and math.isfinite(replay.norm)):
        raise TrainingDiverged(iteration, replay.loss, replay.norm, checkpoint)


def zeros_like(parameters: Parameters) -> Parameters:
    """The momentum (velocity) to start from, one array a parameter."""
    return {index: (np.zeros_like(weight), np.zeros_like(bias)) for index, (weight, bias) in parameters.items()}


def copied(parameters: Parameters) -> Parameters:
    """The same numbers in arrays of their own."""
    return {index: (weight.copy(), bias.copy()) for index, (weight, bias) in parameters.items()}


def mean(gradients: Gradients, others: Gradients, share: float) -> Gradients:
    """``(1 - share) gradients + share others``, tensor by tensor."""
    flat = torch._foreach_lerp(_flat(gradients, gradients), _flat(others, gradients), share)
    pairs = iter(flat)
    return {index: (weight, next(pairs)) for index, weight in zip(gradients, pairs, strict=False)}


def masked(gradients: Gradients, kept: Kept) -> Gradients:
    """Gradients that are 0 at the weights that are not kept."""
    return {index: (weight * torch.from_numpy(kept[index]), bias) for index, (weight, bias) in gradients.items()}


def norm(gradients: Gradients) -> float:
    """Euclidean norm over all gradients, each tensor's in float32 and their sum in float64."""
    return float(torch.stack(torch._foreach_norm(_flat(gradients, gradients))).double().norm())


def step(parameters: Parameters, velocity: Parameters, gradients: Gradients, settings: Sgd, rate: float, clip: float) -> None:
    """One update in place, as torch.optim.SGD has it: ``v = momentum v + clipped gradient + decay w``, ``w -= rate v``.

    Elementwise float32 with one scalar factor, so the same arguments give the same bits. Biases decay as weights do.
    """
    weights = _tensors(parameters, parameters)
    velocities = _tensors(velocity, parameters)
    flat = _clipped(gradients, weights, parameters, settings, clip)
    torch._foreach_mul_(velocities, settings.momentum)
    torch._foreach_add_(velocities, flat)
    torch._foreach_add_(weights, velocities, alpha=-rate)


def adapt(
    parameters: Parameters,
    velocity: Parameters,
    squares: Parameters,
    gradients: Gradients,
    settings: Sgd,
    rate: float,
    clip: float,
    update: int,
) -> None:
    """One update in place, the ``update``-th from 1 on, as torch.optim.Adam has it: each weight's step is the mean of its
    gradients over the root of the mean of their squares. The momentum is the first mean's."""
    weights, means, spreads = (_tensors(kind, parameters) for kind in (parameters, velocity, squares))
    flat = _clipped(gradients, weights, parameters, settings, clip)
    torch._foreach_lerp_(means, flat, 1 - settings.momentum)
    torch._foreach_mul_(spreads, _SPREAD)
    torch._foreach_addcmul_(spreads, flat, flat, value=1 - _SPREAD)
    sizes = torch._foreach_sqrt(spreads)
    torch._foreach_div_(sizes, math.sqrt(1 - _SPREAD**update))
    torch._foreach_add_(sizes, _LEAST)
    torch._foreach_addcdiv_(weights, means, sizes, value=-rate / (1 - settings.momentum**update))


def _clipped(
    gradients: Gradients, weights: list[Tensor], order: Mapping[int, object], settings: Sgd, clip: float
) -> list[Tensor]:
    """The gradients no longer than ``clip`` all together, and the weights' decay."""
    flat = _flat(gradients, order)
    length = norm(gradients)
    if length > clip:
        flat = list(torch._foreach_mul(flat, clip / length))
    if settings.weight_decay:
        flat = list(torch._foreach_add(flat, weights, alpha=settings.weight_decay))
    return flat


def average(running: Parameters, parameters: Parameters, kept: float) -> None:
    """``running = kept running + (1 - kept) parameters``, in place."""
    torch._foreach_lerp_(_tensors(running, running), _tensors(parameters, running), 1 - kept)


def _tensors(arrays: Parameters, order: Mapping[int, object]) -> list[Tensor]:
    """Torch views of the arrays' own memory."""
    return [torch.from_numpy(array) for index in order for array in arrays[index]]


def _flat(gradients: Gradients, order: Mapping[int, object]) -> list[Tensor]:
    return [gradient for index in order for gradient in gradients[index]]
