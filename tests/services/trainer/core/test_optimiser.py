"""Steps against torch.optim.SGD with torch's own clipping."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from services.trainer.core.optimiser import TrainingDiverged, adapt, average, copied, guard, mean, norm, step, zeros_like
from services.trainer.core.replay import Replay
from services.trainer.core.task import Sgd

SHAPES = {0: (4, 3, 3, 3), 3: (5, 4, 1, 1)}


def random_parameters(rng: np.random.Generator):
    return {
        i: (rng.standard_normal(shape, np.float32), rng.standard_normal(shape[0], np.float32)) for i, shape in SHAPES.items()
    }


def random_replay(rng: np.random.Generator, size: float) -> Replay:
    gradients = {
        i: (torch.from_numpy(w * np.float32(size)), torch.from_numpy(b * np.float32(size)))
        for i, (w, b) in random_parameters(rng).items()
    }
    length = math.sqrt(sum(float((g.double() ** 2).sum()) for pair in gradients.values() for g in pair))
    return Replay(1.0, 0, length, gradients)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_steps_as_torch_does(decay: float) -> None:
    rng = np.random.default_rng(0)
    settings = Sgd(momentum=0.9, weight_decay=decay)
    parameters = random_parameters(rng)
    velocity = zeros_like(parameters)
    theirs = [torch.tensor(a, requires_grad=True) for pair in parameters.values() for a in pair]
    peer = torch.optim.SGD(theirs, lr=0.05, momentum=0.9, weight_decay=decay)
    for k in range(6):
        replay = random_replay(rng, size=10.0 ** (k % 3 - 2))  # some under the clip, some over
        for tensor, gradient in zip(theirs, (g for p in replay.gradients.values() for g in p), strict=True):
            tensor.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 3.0)
        peer.step()
        step(parameters, velocity, replay.gradients, settings, 0.05, 3.0)
    mine = [a for pair in parameters.values() for a in pair]
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_adapts_as_torchs_adam_does(decay: float) -> None:
    rng = np.random.default_rng(0)
    settings = Sgd(momentum=0.9, weight_decay=decay)
    parameters = random_parameters(rng)
    velocity, squares = zeros_like(parameters), zeros_like(parameters)
    theirs = [torch.tensor(a, requires_grad=True) for pair in parameters.values() for a in pair]
    peer = torch.optim.Adam(theirs, lr=0.05, betas=(0.9, 0.99), eps=1e-12, weight_decay=decay)
    for k in range(6):
        replay = random_replay(rng, size=10.0 ** (k % 3 - 2))
        for tensor, gradient in zip(theirs, (g for p in replay.gradients.values() for g in p), strict=True):
            tensor.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 3.0)
        peer.step()
        adapt(parameters, velocity, squares, replay.gradients, settings, 0.05, 3.0, k + 1)
    mine = [a for pair in parameters.values() for a in pair]
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_adam_leaves_what_has_no_gradient() -> None:
    rng = np.random.default_rng(2)
    parameters = random_parameters(rng)
    weight = parameters[0][0].copy()
    gradients = random_replay(rng, 1.0).gradients
    gradients[0][0][1] = 0
    adapt(parameters, zeros_like(parameters), zeros_like(parameters), gradients, Sgd(), 0.1, 1e6, 1)
    assert np.array_equal(parameters[0][0][1], weight[1])
    assert np.allclose(np.abs(parameters[0][0][0] - weight[0]), 0.1, rtol=1e-3)


def test_leaves_the_gradients_alone() -> None:
    rng = np.random.default_rng(1)
    parameters = random_parameters(rng)
    replay = random_replay(rng, 100.0)
    before = [g.clone() for p in replay.gradients.values() for g in p]
    step(parameters, zeros_like(parameters), replay.gradients, Sgd(weight_decay=0.1), 1e-3, 5.0)
    assert all(torch.equal(a, b) for a, b in zip(before, (g for p in replay.gradients.values() for g in p), strict=True))


def test_means_and_norms_are_torchs() -> None:
    rng = np.random.default_rng(2)
    a, b = random_replay(rng, 1.0), random_replay(rng, 3.0)
    found = mean(a.gradients, b.gradients, 0.25)
    assert found.keys() == a.gradients.keys()
    for index, pair in found.items():
        for got, x, y in zip(pair, a.gradients[index], b.gradients[index], strict=True):
            torch.testing.assert_close(got, 0.75 * x + 0.25 * y)
    assert norm(a.gradients) == pytest.approx(a.norm)


def test_a_running_average_goes_towards_the_parameters() -> None:
    rng = np.random.default_rng(3)
    running, parameters = random_parameters(rng), random_parameters(rng)
    before, kept = copied(running), copied(parameters)
    average(running, parameters, 0.75)
    for index in SHAPES:
        for got, old, new in zip(running[index], before[index], kept[index], strict=True):
            np.testing.assert_allclose(got, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-6)
        assert np.array_equal(parameters[index][0], kept[index][0])


@pytest.mark.parametrize(("loss", "length"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_stops_on_what_is_not_finite(loss: float, length: float) -> None:
    with pytest.raises(TrainingDiverged, match=r"iteration 7: .* last good checkpoint is runs/x/checkpoint"):
        guard(Replay(loss, 0, length, {}), 7, "runs/x/checkpoint.safetensors")
    with pytest.raises(TrainingDiverged, match="no checkpoint was written yet"):
        guard(Replay(loss, 0, length, {}), 7, None)
    guard(Replay(1.0, 0, 2.0, {}), 7, None)


@pytest.mark.parametrize(
    "bad",
    [
        {"rate": 0}, {"momentum": 1.0}, {"clip": 0}, {"weight_decay": -1}, {"rate": math.nan}, {"clip": math.inf},
        {"rate": 1e30}, {"weight_decay": 1e30}, {"clip": 1e300}, {"momentum": math.nan}, {"weight_decay": math.inf},
    ],
)  # fmt: skip
def test_refuses_settings_out_of_range(bad: dict[str, float]) -> None:
    (name, value), *_ = bad.items()
    with pytest.raises(ValueError, match=f"optimiser: {name} {re.escape(f'{value:g}')}: expected a number >=? 0 and <= "):
        Sgd(**bad)
