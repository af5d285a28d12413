"""One model that learns from several devices: what is asked of each, and what is made of their answers, in order.

As ``course`` it is a generator, driven over the bus and in one process alike. A device's part in a step is a short generator of
the commands of ``course``, ended by what it came to; the driver runs those of all devices side by side, and replies with what
those came to that were in time (docs/training.md, "Several devices").
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from accelsim.engine import Engine
from accelsim.int8.network import Network
from services.trainer.core import parts, recipe, selection
from services.trainer.core.checkpoint import Checkpoint
from services.trainer.core.course import Batch, Deploy, Learnt, Outcome, Steps, agreement, truth_of
from services.trainer.core.job import Job
from services.trainer.core.parts import Replaying
from services.trainer.core.recipe import Plan
from services.trainer.core.replay import Replay
from services.trainer.core.selection import BEFORE, CORRECTED, ERRORS, Agreement, Candidate, Float32, Selection
from services.trainer.core.step import (
    Biases,
    Learner,
    Received,
    Step,
    averaged,
    biases,
    learn,
    replayed,
    restarted,
    take_biases,
)

T = TypeVar("T")


class Judged(NamedTuple):
    """A device's answers to its selection samples: the right outputs (``selection.Tried.truth``), and how far its own agree."""

    truth: Float32
    found: Agreement


class Trial(NamedTuple):
    """A network that was tried on the selection samples of all devices that were there."""

    iteration: int
    """After so many; 0 is the network from before retraining."""
    name: str
    network: Network
    judged: dict[str, Judged]
    """By device. One that came later, and has not answered before retraining, is none of them."""


class Taught(NamedTuple):
    """What a device's batch came to: images, and biases where they are corrected, else gradients."""

    images: int
    made: Replay | Biases


class Each(NamedTuple):
    """Have every device do these steps, side by side. What they end with, by device, is sent back, of one at least."""

    iteration: int
    steps: Callable[[Plan], Steps[object]]
    """Of a device's own plan."""
    teaches: bool
    """Whether it is a batch that is learnt from, and not a trial."""


class Tried(NamedTuple):
    """A network has been tried. Nothing is sent back."""

    trial: Trial


Command = Deploy | Each | Tried | Learnt
Reply = Mapping[str, object] | None
Course = Generator[Command, Reply, Outcome]


def member(job: Job, device: str, available: int, iterations: int | None = None) -> Plan:
    """The plan of one of several devices: samples in an order of its own, whoever else takes part. Raises what ``recipe.plan``
    does. ``iterations`` are the run's."""
    order = int.from_bytes(hashlib.sha256(device.encode()).digest()[:8])
    found = recipe.plan(msgspec.structs.replace(job, device=device, iterations=iterations or job.iterations), available)
    return Plan(found.job, found.pool, found.selection, (order,))


def leading(plans: Mapping[str, Plan]) -> Plan:
    """The plan of the run: that of the device which takes longest for an epoch, the first by name of several."""
    return max((plans[device] for device in sorted(plans)), key=lambda plan: plan.iterations)


def course(
    plan: Plan,
    initial: Network,
    state: Checkpoint,
    path: str,
    saved: Path | None,
    trials: list[Trial],
    replaying: Replaying | None = None,
) -> Course:
    """The commands of a run from a state on, whose arrays become the course's own. As ``services.trainer.core.course.course``.

    ``plan`` is ``leading``'s; ``trials`` are those up to the state's iteration. Raises TrainingDiverged, and ValueError where
    labels or tensors do not fit.
    """
    learner = Learner(plan, Engine(initial, path), state, replaying=replaying)
    trials = list(trials)
    if state.iteration < plan.iterations:
        yield Deploy(state.network, state.version)
        if not trials and plan.job.recipe.selection:
            yield from _try(learner, trials, 0, BEFORE, initial)
    engine: Engine | None = None
    for iteration in range(state.iteration, plan.iterations):
        engine = Engine(learner.state.network, path) if engine is None else engine
        made = yield from _together(learner, engine, iteration, saved)
        if made.network is not engine.network:
            yield _next(learner, made.network, iteration)
            engine = None
        if iteration + 1 == plan.corrections:
            yield from _try(learner, trials, iteration + 1, CORRECTED, made.network)
            if trials and chosen(trials)[0].name == BEFORE:
                yield _next(learner, initial)
                learner.state = restarted(learner.state, initial)
                engine = None
        elif plan.is_check(iteration + 1):
            best = averaged(learner)
            other = bool(trials) and best is not made.network
            if other:
                yield _next(learner, best)
            yield from _try(learner, trials, iteration + 1, f"iteration {iteration + 1}", best)
            if other and iteration + 1 < plan.iterations:
                yield _next(learner, made.network)
        yield Learnt(iteration, made, None if learner.gathered is not None else learner.state)
    return _outcome(learner, trials)


def _together(learner: Learner, engine: Engine, iteration: int, saved: Path | None) -> Generator[Command, Reply, Step]:
    """One iteration: every device runs a batch, and their mean is learnt from."""
    plan = learner.plan
    correcting = iteration < plan.corrections
    spent: list[float] = []

    def steps(of: Plan) -> Steps[object]:
        received = yield Batch(iteration, of.samples(iteration), plan.rates(iteration), plan.view(iteration))
        assert isinstance(received, Received)
        begin = time.perf_counter()
        made = biases(learner, engine, received) if correcting else replayed(learner, engine, received)
        spent.append(time.perf_counter() - begin)
        return Taught(len(received.images), made)

    found = yield Each(iteration, steps, teaches=True)
    taught = _in_order(found, Taught)
    begin = time.perf_counter() - sum(spent)
    if correcting:
        return take_biases(learner, mean_biases(list(taught.values())), begin)
    return learn(learner, mean_gradients(list(taught.values())), saved, begin)


def mean_gradients(taught: list[Taught]) -> Replay:
    """The mean of what devices' batches teach, each by its number of images, in the order given (``parts.combined``)."""
    return parts.combined([(one.images, one.made) for one in taught if isinstance(one.made, Replay)])


def mean_biases(taught: list[Taught]) -> Biases:
    """Likewise of the biases that they ask for."""
    found = [(one.images, one.made) for one in taught if isinstance(one.made, Biases)]
    images = sum(count for count, _ in found)
    return Biases(
        loss=sum(count * one.loss for count, one in found) / images,
        correct=sum(one.correct for _, one in found),
        biases={
            index: parts.mean_of_arrays([(count, one.biases[index]) for count, one in found]).numpy()
            for index in found[0][1].biases
        },
    )


def _try(learner: Learner, trials: list[Trial], iteration: int, name: str, network: Network) -> Generator[Command, Reply, None]:
    """Try the network that the devices run now, where anything is held back for that."""
    if name != BEFORE and not trials:
        return
    truths = {} if not trials else {device: one.truth for device, one in trials[0].judged.items()}

    def steps(of: Plan) -> Steps[object]:
        if not trials and len(of.selection):
            truth = yield from truth_of(of, network, None)
        elif of.job.device in truths:
            truth = truths[of.job.device]
        else:
            return None
        return Judged(truth, (yield from agreement(of, network, truth)))

    found = yield Each(iteration, steps, teaches=False)
    judged = _in_order({device: one for device, one in (found or {}).items() if one is not None}, Judged)
    if judged:
        trials.append(Trial(iteration, name, network, judged))
        yield Tried(trials[-1])


def chosen(trials: list[Trial]) -> tuple[Trial, float, float]:
    """The best trial, with its gain over the first and that gain's standard error; among equal ones the latest."""
    return max(((trial, *gained(trials[0], trial)) for trial in trials), key=lambda one: (one[1], one[0].iteration))


def gained(before: Trial, after: Trial) -> tuple[float, float]:
    """Points gained by the devices that answered both times, and the standard error (``selection.gained``)."""
    both = sorted(before.judged.keys() & after.judged.keys())
    if not both:
        return 0.0, 0.0
    return selection.gained(_joined(before, both), _joined(after, both))


def _joined(trial: Trial, devices: list[str]) -> Agreement:
    return np.concatenate([trial.judged[device].found for device in devices], axis=1)


def _outcome(learner: Learner, trials: list[Trial]) -> Outcome:
    version = learner.state.version + 1
    if not trials:
        return Outcome(averaged(learner), version, None)
    best, gain, error = chosen(trials)
    better = gain > ERRORS * error
    candidates = []
    for trial in trials:
        points, doubt = gained(trials[0], trial)
        percent = 100 * float(_joined(trial, sorted(trial.judged)).mean(dtype=np.float64))
        candidates.append(Candidate(name=trial.name, agreement=percent, gain=points, error=doubt))
    found = Selection(
        samples=sum(one.found.shape[1] for one in trials[0].judged.values()),
        against=selection.against(learner.plan.job),
        candidates=candidates,
        deployed=best.name if better else BEFORE,
    )
    return Outcome(best.network if better else trials[0].network, version, found)


def _next(learner: Learner, network: Network, iteration: int = -1) -> Deploy:
    """The next version for the devices."""
    learner.state = learner.state._replace(version=learner.state.version + 1)
    return Deploy(network, learner.state.version, iteration)


def _in_order(found: Mapping[str, object] | None, kind: type[T]) -> dict[str, T]:
    """What devices came to by name, in that order: the order of sums. Raises RuntimeError where that is something else."""
    given = dict(sorted((found or {}).items()))
    if not all(isinstance(one, kind) for one in given.values()) or (not given and kind is Taught):
        raise RuntimeError(f"a step of several devices ended without a {kind.__name__} of each")
    return given  # type: ignore[return-value]
