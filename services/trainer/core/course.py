"""A retraining run from its first pass of the device to the network that is deployed: what is asked of the device, in order.

It is a generator, so that the same course goes over the bus and in one process: whoever drives it does what a command
says and sends back what came of it.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from accelsim.engine import Engine, shared
from accelsim.faults import Rates
from accelsim.int8.network import Activation, Network
from services.scheme import View
from services.trainer.core import evaluation, selection
from services.trainer.core.checkpoint import Checkpoint
from services.trainer.core.labels import Own, right, taught
from services.trainer.core.parts import Replaying
from services.trainer.core.recipe import Plan
from services.trainer.core.selection import SEEDS, Agreement, Float32, Selection
from services.trainer.core.step import Learner, Received, Step, averaged, correct, restarted, step

Int64 = npt.NDArray[np.int64]
T = TypeVar("T")


class Deploy(NamedTuple):
    """Have the device run a network from now on. Nothing is sent back."""

    network: Network
    version: int
    iteration: int = -1
    """The one that made it; -1 where it is only tried, or was there before."""


class Batch(NamedTuple):
    """Run a batch in training mode. Received is sent back."""

    iteration: int
    samples: Int64
    rates: Rates
    view: View | None


class Answers(NamedTuple):
    """Run training samples in inference mode. Answered is sent back."""

    iteration: int
    samples: Int64
    seed: int | None
    """Of the faults; None has the general-purpose processor run them, fault-free."""
    step: int
    """Of ``steps`` such commands in a row."""
    steps: int


class Learnt(NamedTuple):
    """An iteration is done, and its network is deployed next. Nothing is sent back."""

    iteration: int
    made: Step
    state: Checkpoint | None
    """To go on from; None where gradients still gather."""


Command = Deploy | Batch | Answers | Learnt


class Answered(NamedTuple):
    """The device's outputs (N, H, W, C), and its labels (N,) if it has any."""

    outputs: Activation
    labels: Int64 | None


Reply = Received | Answered | None
Steps = Generator[Command, Reply, T]


class Outcome(NamedTuple):
    """What a run ends with."""

    network: Network
    """The one that is deployed."""
    version: int
    selection: Selection | None
    """How it was chosen; None where nothing was held back for that."""


def course(
    plan: Plan,
    initial: Network,
    state: Checkpoint,
    path: str,
    own: Own | None,
    saved: Path | None,
    replaying: Replaying | None = None,
) -> Steps[Outcome]:
    """The commands of a run from a state on, whose arrays become the course's own.

    ``path`` is that of the engines, ``own`` the server's labels or targets of the device's training samples, ``saved`` where
    the driver puts checkpoints, if it does. ``replaying`` is the ``Learner``'s.
    Raises TrainingDiverged, and ValueError where labels or tensors do not fit.
    """
    learner = Learner(plan, Engine(initial, path), state, replaying=replaying)
    if state.iteration < plan.iterations:
        yield Deploy(state.network, state.version)
        if len(plan.selection) and state.tried is None:
            truth = yield from truth_of(plan, initial, own)
            found = yield from agreement(plan, initial, truth)
            learner.state = state._replace(tried=selection.first(initial, truth, found))
    engine: Engine | None = None
    for iteration in range(state.iteration, plan.iterations):
        engine = shared(learner.state.network, path) if engine is None else engine
        samples = plan.samples(iteration)
        received = yield Batch(iteration, samples, plan.rates(iteration), plan.view(iteration))
        assert isinstance(received, Received)
        if own is not None:
            received = received._replace(server_labels=own[samples])
        made = correct(learner, engine, received) if iteration < plan.corrections else step(learner, engine, received, saved)
        if made.network is not engine.network:
            yield _next(learner, made.network, iteration)
            engine = None
        if iteration + 1 == plan.corrections:
            yield from _try(learner, selection.CORRECTED, made.network)
            if _lost(learner):
                yield _next(learner, initial)
                learner.state = restarted(learner.state, initial)
        elif plan.is_check(iteration + 1):
            best = averaged(learner)
            if len(plan.selection) and best is not made.network:
                yield _next(learner, best)
            yield from _try(learner, f"iteration {iteration + 1}", best)
            if len(plan.selection) and best is not made.network and iteration + 1 < plan.iterations:
                yield _next(learner, made.network)
        yield Learnt(iteration, made, None if learner.gathered is not None else learner.state)
    return _outcome(learner)


def _next(learner: Learner, network: Network, iteration: int = -1) -> Deploy:
    """The next version for the device."""
    learner.state = learner.state._replace(version=learner.state.version + 1)
    return Deploy(network, learner.state.version, iteration)


def truth_of(plan: Plan, network: Network, own: Own | None) -> Steps[Float32]:
    """The right outputs (``Tried.truth``) of the selection samples: the labels where they are known, else those of the
    network that runs now on the device's general-purpose processor, which makes no errors."""
    if own is not None:
        return right(plan.job, network, own[plan.selection])
    found = []
    passes = list(evaluation.passes(plan.selection, [0], plan.job.evaluation_batch))
    for number, due in enumerate(passes):
        answered = yield Answers(due.iteration, due.samples, None, number + 1, len(passes))
        assert isinstance(answered, Answered)
        if plan.job.labels == "device":
            if answered.labels is None:
                raise ValueError("labels are to come from the device, which gave none; choose another source of labels")
            found.append(right(plan.job, network, answered.labels))
        else:
            found.append(taught(plan.job, network, answered.outputs))
    return np.concatenate(found)


def agreement(plan: Plan, network: Network, truth: Float32) -> Steps[Agreement]:
    """How far the answers of the faulty device agree with the right ones, with the network that it runs now."""
    found: list[list[Float32]] = [[] for _ in SEEDS]
    passes = list(evaluation.passes(plan.selection, SEEDS, plan.job.evaluation_batch))
    place = {int(sample): i for i, sample in enumerate(plan.selection)}
    for number, due in enumerate(passes):
        answered = yield Answers(due.iteration, due.samples, due.seed, number + 1, len(passes))
        assert isinstance(answered, Answered)
        of = truth[[place[int(sample)] for sample in due.samples]]
        found[due.run].append(selection.agreement(plan.job, network, answered.outputs, of))
    return np.stack([np.concatenate(parts) for parts in found])


def _try(learner: Learner, name: str, network: Network) -> Steps[None]:
    """Try the network that the device runs now on the selection samples."""
    tried = learner.state.tried
    if tried is not None:
        found = yield from agreement(learner.plan, network, tried.truth)
        learner.state = learner.state._replace(tried=selection.further(tried, name, network, found))


def _lost(learner: Learner) -> bool:
    """Whether correcting biases did harm."""
    tried = learner.state.tried
    return tried is not None and tried.best_name == selection.BEFORE


def _outcome(learner: Learner) -> Outcome:
    plan, state, tried = learner.plan, learner.state, learner.state.tried
    if tried is None:
        return Outcome(averaged(learner), state.version + 1, None)
    better = selection.is_better(tried)
    found = Selection(
        samples=len(plan.selection),
        against=selection.against(plan.job),
        candidates=tried.candidates,
        deployed=tried.best_name if better else selection.BEFORE,
    )
    return Outcome(tried.best if better else learner.initial.network, state.version + 1, found)
