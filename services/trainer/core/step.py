"""One iteration of learning: labels, replayed backward pass, guard, optimiser, the next int8 network."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from accelsim.engine import Engine
from accelsim.faults.permanent import FaultMap, dead_weights, faulty_network
from accelsim.faults.pruning import Kept
from accelsim.int8.network import Activation, Network, UInt8
from accelsim.int8.parameters import dequantize, quantize
from accelsim.int8.phases import bias_groups
from services.known import known_faults
from services.trainer.core import correction, drawn, labels, optimiser, rate
from services.trainer.core.checkpoint import Checkpoint
from services.trainer.core.job import Job, digest
from services.trainer.core.labels import Own
from services.trainer.core.loss import Labels, loss
from services.trainer.core.parts import Replaying, chunked
from services.trainer.core.recipe import Plan
from services.trainer.core.replay import Gradients, Replay, activations
from services.trainer.core.replay import replay as whole

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

INITIAL_VERSION = 1
"""Version of the network before retraining; every network that is deployed later has one more."""


class Received(NamedTuple):
    """What the server has of one batch that the device ran."""

    images: UInt8
    """(N, H, W, C)"""
    activations: Mapping[int, Activation]
    """Output (N, H, W, C) of each MAC layer by index, faults and all."""
    device_labels: Int64 | None
    """(N,)"""
    server_labels: Own | None = None
    """Or targets: (N, H, W) or (N, H, W, C)."""


class Step(NamedTuple):
    """What an iteration came to."""

    network: Network
    """The next one, as the device will run it; the same one where gradients still gather."""
    loss: float
    correct: int
    """Images of the batch that the device itself got right."""
    norm: float
    """Of the gradients; 0 where none were taken."""
    backward_s: float
    """Host time of labels, backward pass and optimiser."""
    quantise_s: float


class Biases(NamedTuple):
    """What a batch asks of the biases: of each MAC layer by index, (O,) float32 in real units."""

    loss: float
    correct: int
    biases: dict[int, Float32]


@dataclass(slots=True)
class Learner:
    """What the server learns with, and what it has learnt: the arrays in ``state`` change in place."""

    plan: Plan
    initial: Engine
    """Of the network from before retraining: the teacher, and what biases are corrected towards."""
    state: Checkpoint
    gathered: Gradients | None = None
    """Mean of the gradients since the last update."""
    replaying: Replaying | None = None
    """Who replays batches; None for this process, in the recipe's chunks."""
    kept: Kept | None = None
    """Weights that the device can hold; the others get no gradient, so from ``holding`` on they and all that is kept of them
    are 0. None where it can hold all."""


def start(job: Job, initial: Network) -> Checkpoint:
    """The state before the first iteration."""
    empty = Checkpoint(0, INITIAL_VERSION, digest(job), {}, {}, {}, {}, initial, rate.Seen(), None)
    return restarted(empty, initial, adaptive=job.sgd.rule == "adam")


def restarted(state: Checkpoint, initial: Network, *, adaptive: bool = False) -> Checkpoint:
    """The state with the weights from before retraining. ``adaptive``: one for Adam, as it stays one in any case."""
    parameters = dequantize(initial)
    return state._replace(
        parameters=parameters,
        velocity=optimiser.zeros_like(parameters),
        average=optimiser.copied(parameters),
        squares=optimiser.zeros_like(parameters) if adaptive or state.squares else {},
        network=initial,
    )


def holding(state: Checkpoint, kept: Kept) -> Checkpoint:
    """A state before its first iteration, with the weights that the device cannot hold at 0."""
    parameters = {index: (weight * kept[index], bias) for index, (weight, bias) in state.parameters.items()}
    return restarted(state, quantize(state.network, parameters))


def correct(learner: Learner, engine: Engine, received: Received) -> Step:
    """Correct biases by one batch that the device ran; ``engine`` runs the same network exactly."""
    begin = time.perf_counter()
    return take_biases(learner, biases(learner, engine, received), begin)


def biases(learner: Learner, engine: Engine, received: Received) -> Biases:
    """The biases that one device's batch asks for. Nothing of the learner changes."""
    state, network = learner.state, engine.network
    truth = _labels(learner, received)
    x = network.quantize_images(received.images)
    device = activations(network, x, received.activations, engine.fault_free)
    found = loss(network, device[len(network.layers) - 1], truth)
    moved = optimiser.copied(state.parameters)
    correction.correct(network, moved, engine, learner.initial, x, device, 1 / (state.iteration + 1))
    asked = {index: bias for index, (_, bias) in moved.items()}
    for parts in bias_groups(network):  # of the phases of a transposed convolution, which have one
        mean = np.mean([asked[index][channels] for index, channels in parts], axis=0, dtype=np.float64)
        for index, channels in parts:
            asked[index][channels] = mean
    return Biases(found.value, found.correct, asked)


def take_biases(learner: Learner, found: Biases, begin: float) -> Step:
    """Have the learner go on with these biases. ``begin``: when the iteration's work on the server began."""
    state = learner.state
    for index, bias in found.biases.items():
        state.parameters[index][1][:] = bias
    following = quantize(state.network, state.parameters)
    learner.state = state._replace(iteration=state.iteration + 1, average=optimiser.copied(state.parameters), network=following)
    return Step(following, found.loss, found.correct, 0.0, time.perf_counter() - begin, 0.0)


def step(learner: Learner, engine: Engine, received: Received, saved: Path | None) -> Step:
    """Learn from one batch that the device ran; ``engine`` runs the same network exactly.

    Raises TrainingDiverged, which names the checkpoint ``saved`` if there is one, before anything changes, and ValueError
    where labels or tensors do not fit.
    """
    begin = time.perf_counter()
    return learn(learner, replayed(learner, engine, received), saved, begin)


def replayed(learner: Learner, engine: Engine, received: Received) -> Replay:
    """What one device's batch teaches: the loss of its outputs, and the gradients, with the fault-free network's share in them.

    Nothing of the learner changes.
    """
    network, recipe = engine.network, learner.plan.job.recipe
    truth = _labels(learner, received)
    x = network.quantize_images(received.images)
    replay = learner.replaying or chunked(recipe.chunks)
    known = known_faults(learner.plan.job.known, "job: known")
    ran = network if known is None else faulty_network(network, known)
    found = replay(ran, x, received.activations, truth, engine.fault_free)
    if recipe.clean and math.isfinite(found.norm):
        clean = replay(network, x, dict(enumerate(engine.run(x))), truth, engine.fault_free)
        found = found._replace(gradients=optimiser.mean(found.gradients, clean.gradients, recipe.clean))
    if recipe.drawn and math.isfinite(found.norm):
        job, iteration = learner.plan.job, learner.state.iteration
        outputs, inside = drawn.faulty_pass(
            engine, x, learner.plan.rates(iteration), job.scheme, job.seed, f"server of {job.device}", iteration
        )
        own = whole(network, x, outputs, truth, engine.fault_free, inside)
        found = found._replace(gradients=optimiser.mean(found.gradients, own.gradients, recipe.drawn))
    return found if known is None else held_back(found, network, known)


def learn(learner: Learner, found: Replay, saved: Path | None, begin: float) -> Step:
    """Have the learner take these gradients. Raises what ``step`` does; ``begin`` is as in ``take_biases``."""
    plan, state = learner.plan, learner.state
    recipe, learnt = plan.job.recipe, state.iteration - plan.corrections
    optimiser.guard(found, state.iteration, str(saved) if saved is not None and saved.exists() else None)
    gradients = found.gradients
    if learner.kept is not None:
        gradients = optimiser.masked(gradients, learner.kept)
    update, place = divmod(learnt, recipe.accumulate)
    if learner.gathered is not None:
        gradients = optimiser.mean(learner.gathered, gradients, 1 / (place + 1))
    learner.state = state = state._replace(iteration=state.iteration + 1)
    if place + 1 < recipe.accumulate and learnt + 1 < plan.learning:
        learner.gathered = gradients
        return Step(state.network, found.loss, found.correct, found.norm, time.perf_counter() - begin, 0.0)
    learner.gathered = None
    seen = state.seen.and_(found.loss, optimiser.norm(gradients))
    highest, clip = rate.settled(plan.job.sgd, seen, plan.updates)
    settings, now = plan.job.sgd, highest * plan.slope(update)
    if settings.rule == "adam":
        optimiser.adapt(state.parameters, state.velocity, state.squares, gradients, settings, now, clip, seen.updates)
    else:
        optimiser.step(state.parameters, state.velocity, gradients, settings, now, clip)
    # The first averages are over all updates so far, so that the start is soon forgotten.
    optimiser.average(state.average, state.parameters, min(recipe.average, update / (update + 5)))
    stepped = time.perf_counter()
    following = quantize(state.network, state.parameters)
    learner.state = state._replace(network=following, seen=seen)
    return Step(following, found.loss, found.correct, found.norm, stepped - begin, time.perf_counter() - stepped)


def held_back(found: Replay, network: Network, known: FaultMap) -> Replay:
    """The gradients without those of weights that no bit of the register holds: what is loaded there changes nothing.

    Such are the weights on bypassed elements. A weight of which some bits are stuck keeps its gradient, straight through.
    """
    gradients = {}
    for index, conv in network.convs():
        weight, bias = found.gradients[index]
        gradients[index] = weight.masked_fill(torch.from_numpy(dead_weights(conv, known)), 0.0), bias
    return found._replace(gradients=gradients, norm=optimiser.norm(gradients))


def averaged(learner: Learner) -> Network:
    """The network of the running average, or the present one where the recipe averages nothing."""
    state = learner.state
    return quantize(state.network, state.average) if learner.plan.job.recipe.average else state.network


def _labels(learner: Learner, received: Received) -> Labels:
    job, network, taught = learner.plan.job, learner.initial.network, None
    if job.labels not in ("device", "server"):
        taught = network, learner.initial.run(network.quantize_images(received.images))[-1]
    return labels.choose(job, network, device=received.device_labels, server=received.server_labels, teacher=taught)
