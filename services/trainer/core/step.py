"""One iteration of learning: labels, replayed backward pass, guard, optimiser, the next int8 network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from accelsim.engine import Engine
from accelsim.int8.network import Activation, Network, UInt8
from accelsim.int8.parameters import Parameters, dequantize, quantize
from services.trainer.core import labels, optimiser
from services.trainer.core.checkpoint import Checkpoint
from services.trainer.core.job import Job, digest
from services.trainer.core.replay import Labels, replay

Int64 = npt.NDArray[np.int64]

INITIAL_VERSION = 1
"""Version of the network before retraining; after n iterations it is n more."""


class Received(NamedTuple):
    """What the server has of one batch that the device ran."""

    images: UInt8
    """(N, H, W, C)"""
    activations: Mapping[int, Activation]
    """Output (N, H, W, C) of each MAC layer by index, faults and all."""
    device_labels: Int64 | None
    """(N,)"""
    server_labels: Int64 | None = None


class Step(NamedTuple):
    """What an iteration came to."""

    network: Network
    """The next one, as the device will run it."""
    loss: float
    correct: int
    """Images of the batch that the device itself got right."""
    norm: float
    """Of the gradients."""
    backward_s: float
    """Host time of labels, backward pass and optimiser."""
    quantise_s: float


@dataclass(slots=True)
class Learner:
    """What the server learns with, and what it has learnt: ``parameters`` and ``velocity`` change in place."""

    job: Job
    parameters: Parameters
    velocity: Parameters
    order: np.random.Generator
    """Draws the samples."""
    teacher: Engine | None
    """The network from before retraining, where labels are to come from it."""


def start(job: Job, initial: Network) -> Checkpoint:
    """The state before the first iteration."""
    parameters = dequantize(initial)
    return Checkpoint(
        iteration=0,
        version=INITIAL_VERSION,
        config=digest(job),
        generator=dict(np.random.PCG64(job.seed).state),
        parameters=parameters,
        velocity=optimiser.zeros_like(parameters),
        network=initial,
    )


def learner(job: Job, initial: Network, state: Checkpoint, path: str) -> Learner:
    """A learner that goes on from a state, whose arrays become its own. ``path`` is the teacher's engine's."""
    order = np.random.Generator(np.random.PCG64())
    order.bit_generator.state = state.generator
    teacher = Engine(initial, path) if job.labels.startswith("teacher") else None
    return Learner(job, state.parameters, state.velocity, order, teacher)


def draw(learner: Learner, available: int) -> Int64:
    """Numbers of the samples of the next batch, none twice; fewer than a batch where no more are available."""
    return learner.order.choice(available, size=min(learner.job.batch, available), replace=False)


def step(
    learner: Learner, network: Network, engine: Engine, received: Received, iteration: int, checkpoint: str | None
) -> Step:
    """Learn from one batch that the device ran on ``network``; ``engine`` runs the same network exactly.

    Raises TrainingDiverged, which names ``checkpoint``, before anything changes, and ValueError where labels or tensors do
    not fit.
    """
    begin = time.perf_counter()
    job = learner.job
    truth = _labels(learner, received)
    found = replay(network, network.quantize_images(received.images), received.activations, truth, engine.fault_free)
    optimiser.guard(found, iteration, checkpoint)
    optimiser.step(learner.parameters, learner.velocity, found, job.sgd)
    stepped = time.perf_counter()
    following = quantize(network, learner.parameters)
    return Step(following, found.loss, found.correct, found.norm, stepped - begin, time.perf_counter() - stepped)


def _labels(learner: Learner, received: Received) -> Labels:
    taught = None
    if learner.teacher is not None:
        network = learner.teacher.network
        outputs = learner.teacher.run(network.quantize_images(received.images))
        taught = labels.teach(network, outputs[-1], soft=learner.job.labels == "teacher-soft")
    return labels.choose(learner.job.labels, device=received.device_labels, server=received.server_labels, teacher=taught)
