"""The run: evaluate the device without and with its faults, retrain it in the loop, evaluate again. Read it from the top."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final, assert_never

import numpy as np
import numpy.typing as npt
import structlog

from accelsim.datasets import spread
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from services.bus import Bus
from services.bus.messages import Phase, State
from services.bus.service import Stopped
from services.trainer import samples
from services.trainer.answers import Data
from services.trainer.core import checkpoint, evaluation, job, ledger, recipe, result
from services.trainer.core.checkpoint import Checkpoint
from services.trainer.core.course import (
    Answered,
    Answers,
    Batch,
    Command,
    Deploy,
    Learnt,
    Outcome,
    Reply,
    Steps,
    course,
)
from services.trainer.core.evaluation import Evaluation, Measured, Reference
from services.trainer.core.job import Job
from services.trainer.core.labels import Own
from services.trainer.core.objective import fitting, kind_of
from services.trainer.core.parts import Replaying
from services.trainer.core.recipe import Plan
from services.trainer.core.result import Result
from services.trainer.core.step import INITIAL_VERSION, Received, Step, start
from services.trainer.disk import written
from services.trainer.patience import ready_s
from services.trainer.table1 import Mode, Server, serving

log = structlog.get_logger()

Int64 = npt.NDArray[np.int64]
Turn = AbstractAsyncContextManager[Any]
REFERENCE: Final = "reference"
"""Fault-free outputs (N, H, W, C) of the network from before retraining, for the held-out samples of the evaluations."""
MOST_SAMPLES = 1 << 26
"""That a device may say it has of a split: a plan numbers them all."""


async def run(
    bus: Bus, folder: Path, path: str, turn: Turn | None = None, replaying: Replaying | None = None
) -> None:  # fmt: skip
    """The whole job of a run's folder, from wherever an earlier process left it.

    ``turn`` is held while the server computes: where one process learns for several devices, one of them at a time has torch's
    threads, all of them, as it has alone. ``replaying``: see ``Learner``.

    Leaves ``result.json``, ``progress.jsonl`` and ``retrained.safetensors`` there. Raises DeviceError, TrainingDiverged,
    or ValueError for files that do not fit together; each says what to do next. Raises Stopped where somebody had it stopped:
    behind an iteration, whose checkpoint is written, or a pass of an evaluation, which is then done again from its beginning.
    """
    todo = job.read(folder)
    initial = storage.load(folder / job.NETWORK)
    job.check(todo, initial)
    found = result.read(folder)

    await bus.announce(session=todo.session)  # the name is the device's lease: who is refused it is told for which run
    async with serving(bus, todo.session, patience=todo.patience_s) as server:
        agent = await server.ready(todo.device, ready_s(todo.patience_s))
        check_device(todo, agent)
        plan = recipe.plan(todo, agent.samples["train"])
        found.iterations = plan.iterations
        state = resumed(folder, todo, initial)
        await before(server, todo, folder, found, agent, initial)
        outcome = await Training(server, folder, plan, turn or nullcontext()).run(initial, state, path, replaying)
        found.selection = outcome.selection
        if found.faulty_after is None:
            await written(lambda: storage.save(outcome.network, folder / result.RETRAINED))
        faulty = await after(server, todo, folder, found, agent, initial, outcome)
        done = plan.iterations
        metric = todo.metric or "top1"
        await server.publish_progress(todo.device, "done", done, done, fmean(faulty.of(metric)), metric=metric)


async def end_if_stopped(server: Server, device: str, where: str) -> None:
    """Raises Stopped where somebody has asked for it; ``where`` in the run, for people."""
    if by := server.stopped_by(device):
        await server.publish_stopped(device)
        raise Stopped(f"stopped by {by} {where}")


async def before(server: Server, todo: Job, folder: Path, found: Result, agent: State, initial: Network) -> None:
    """Evaluate the device before retraining, and in the paper's arithmetic where the folder has that; what is known stays."""
    held_out = agent.samples["test"]
    if todo.against == "fault-free outputs" and not (folder / f"{REFERENCE}.npy").exists():
        await server.deploy_model(todo.device, initial, version=INITIAL_VERSION)
        await _refer(server, todo, folder, held_out)
    truth = _truth(todo, folder, initial, held_out)
    if found.faulty_plain is None and (folder / job.PLAIN).exists():
        plain = storage.load(folder / job.PLAIN)
        await server.deploy_model(todo.device, plain, version=evaluation.PLAIN_VERSION)
        found.clean_plain = await _evaluate(server, todo, folder, "plain", plain, truth, held_out, faults=False)
        found.faulty_plain = await _evaluate(server, todo, folder, "plain", plain, truth, held_out, faults=True)
        await written(lambda: result.write(folder, found))
    if found.faulty_before is None:
        await server.deploy_model(todo.device, initial, version=INITIAL_VERSION)
        if found.clean_before is None:
            found.clean_before = await _evaluate(server, todo, folder, "before", initial, truth, held_out, faults=False)
            await written(lambda: result.write(folder, found))
        found.faulty_before = await _evaluate(server, todo, folder, "before", initial, truth, held_out, faults=True)
        await written(lambda: result.write(folder, found))


async def after(
    server: Server, todo: Job, folder: Path, found: Result, agent: State, initial: Network, outcome: Outcome
) -> Evaluation:
    """Deploy what a run ends with and evaluate the device on it; what it comes to with faults."""
    if found.faulty_after is None:
        held_out = agent.samples["test"]
        truth = _truth(todo, folder, initial, held_out)
        await server.deploy_model(todo.device, outcome.network, version=outcome.version)
        if found.clean_after is None:
            found.clean_after = await _evaluate(server, todo, folder, "after", outcome.network, truth, held_out, faults=False)
            await written(lambda: result.write(folder, found))
        found.faulty_after = await _evaluate(server, todo, folder, "after", outcome.network, truth, held_out, faults=True)
        found.model_sha256 = storage.digest(outcome.network)
        await written(lambda: result.write(folder, found))
    return found.faulty_after


class Training:
    """Drives the course of a run on a device."""

    def __init__(self, server: Server, folder: Path, plan: Plan, turn: Turn) -> None:
        self.server = server
        self.turn = turn
        self.folder = folder
        self.plan = plan
        self.job = plan.job
        self.mode: Mode | None = None
        """What the device was last told."""
        self.book = ledger.Ledger()
        self.rows: list[ledger.Row] = []
        self.saved = 0
        """Iterations that the last checkpoint holds."""
        self.begun = 0.0

    async def run(self, initial: Network, state: Checkpoint, path: str, replaying: Replaying | None) -> Outcome:
        """What the run ends with, from a state on, whose arrays are updated in place."""
        await self.begin(state.iteration)
        file = self.folder / checkpoint.FILE
        own = _server_labels(self.folder, self.job, initial, len(self.plan.pool) + len(self.plan.selection))
        steps = course(self.plan, initial, state, path, own, file, replaying)
        reply: Reply = None
        while True:
            async with self.turn:
                command = await asyncio.to_thread(_advance, steps, reply)
            if isinstance(command, Outcome):
                return command
            reply = await self.carry(command)

    async def begin(self, iteration: int) -> None:
        """Take note of what iterations cost, from this one on; rows of later ones are done again."""
        await self.server.on_events(
            self.job.device, self.book.add, lambda votes: self.book.add_votes(votes.iteration, votes.layers)
        )
        await written(lambda: ledger.truncate(self.folder / result.PROGRESS, iteration))
        self.saved = iteration

    async def carry(self, command: Command) -> Reply:
        """Do as a command says; what came of it."""
        match command:
            case Deploy():
                await self._deploy(command)
            case Batch():
                return await self._batch(command)
            case Answers():
                return await self._answers(command)
            case Learnt():
                await self.learnt(command)
        return None

    async def _deploy(self, command: Deploy) -> None:
        """The device gets the network while the server goes on; the next pass waits for it there."""
        await self.server.deploy_model(
            self.job.device, command.network, version=command.version, iteration=command.iteration, wait=False
        )

    async def _enter(self, mode: Mode) -> None:
        if self.mode is not mode:
            todo = self.job
            # What is known of the chip is for predictions, and only training has such.
            known = todo.known if mode is Mode.TRAINING else b""
            await self.server.set_mode(todo.device, mode, rates=todo.rates, seed=todo.seed, scheme=todo.scheme, known=known)
            self.mode = mode

    async def _batch(self, command: Batch) -> Received:
        self.begun = time.perf_counter()
        await self._enter(Mode.TRAINING)
        self.data = await self.server.get_data(
            self.job.device,
            iteration=command.iteration,
            split="train",
            samples=command.samples.tolist(),
            rates=None if command.rates == self.job.rates else command.rates,
            view=command.view,
        )
        self.received = _received(self.data)
        return self.received

    async def _answers(self, command: Answers) -> Answered:
        await self._enter(Mode.INFERENCE)
        reliable = command.seed is None
        samples = command.samples.tolist()
        data = await self.server.get_data(
            self.job.device, iteration=command.iteration, split="train", samples=samples, seed=command.seed, reliable=reliable
        )
        if data.outputs is None:
            raise RuntimeError("a pass in inference mode ended without its outputs")
        await self.server.publish_progress(self.job.device, "select", command.step, command.steps, 0.0, faults=not reliable)
        if not self.begun:  # no iteration is under way
            await end_if_stopped(self.server, self.job.device, f"after {self.saved} iterations")
        return Answered(data.outputs, data.labels)

    async def learnt(self, command: Learnt) -> None:
        """Note what an iteration came to; where it is time, a checkpoint."""
        due = is_due(self.plan, self.saved, command, bool(self.server.stopped_by(self.job.device)))
        await self.note(command, due)
        if due and command.state is not None:
            await written(partial(checkpoint.write, self.folder, command.state), aside=True)
            self.saved = command.iteration + 1
            await end_if_stopped(self.server, self.job.device, f"after {self.saved} iterations")

    async def note(self, command: Learnt, due: bool) -> None:
        """Note what an iteration came to; ``due``: a checkpoint is written next."""
        device, iteration, made = self.job.device, command.iteration, command.made
        total = self.plan.iterations
        # Its own stages it need not hear of from the bus, which may be too late for a row that is written now.
        self.book.add(await self.server.publish_timing(device, "backward", iteration, made.backward_s))
        self.book.add(await self.server.publish_timing(device, "quantise", iteration, made.quantise_s))
        classes = self.job.against == "labels"
        row = _row(iteration, classes, made, self.data, self.received, time.perf_counter() - self.begun)
        self.rows.append(row)
        await self.server.publish_iteration(device, row, total, self.data)
        await self.server.publish_progress(device, "train", iteration + 1, total, made.loss, made.norm)
        # Events of an iteration may still be under way when it ends; by the one after next they are here. A checkpoint
        # does not wait for them: every row that it will not do again must be on the disk first.
        await written(lambda: self.book.settle(self.folder / result.PROGRESS, self.rows, keep=0 if due else 2))


def is_due(plan: Plan, saved: int, learnt: Learnt, stopping: bool) -> bool:
    """Whether a checkpoint is written behind an iteration; the last one holds ``saved`` of them. A run that is to be stopped
    goes on where gradients still gather, for there is nothing to go on from."""
    done = learnt.iteration + 1
    return learnt.state is not None and (stopping or done - saved >= plan.job.checkpoint_every or done == plan.iterations)


def _advance(steps: Steps[Outcome], reply: Reply) -> Command | Outcome:
    """What the course asks for next, or what it ends with."""
    try:
        return steps.send(reply)
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome


async def _refer(server: Server, todo: Job, folder: Path, available: int) -> None:
    """Leave in the folder what the network that runs now gives for the held-out samples of an evaluation, fault-free."""
    await server.set_mode(todo.device, Mode.INFERENCE, rates=Rates(), seed=todo.seed, scheme=todo.scheme.bare)
    found = []
    for due in evaluation.passes(spread(todo.evaluation_samples, available), [0], todo.evaluation_batch):
        data = await server.get_data(
            todo.device, iteration=due.iteration, split="test", samples=due.samples.tolist(), reliable=True
        )
        if data.outputs is None:
            raise RuntimeError("a pass in inference mode ended without its outputs")
        found.append(data.outputs)
    await written(lambda: samples.save(folder, REFERENCE, np.concatenate(found)))


def _truth(todo: Job, folder: Path, initial: Network, available: int) -> Reference | None:
    """What the held-out samples of an evaluation are measured against; None where that is the device's labels."""
    match todo.against:
        case "labels":
            return None
        case "targets":
            path = folder / job.TARGETS
            targets = _own(path, available)
            fitting(kind_of(todo, initial), initial, targets, str(path))
            return evaluation.against_targets(todo, initial, targets[spread(todo.evaluation_samples, available)])
        case "fault-free outputs":
            outputs = samples.read(folder, REFERENCE, initial, min(todo.evaluation_samples, available))
            return evaluation.against_outputs(todo, initial, outputs)
        case _:
            assert_never(todo.against)


async def _evaluate(
    server: Server,
    todo: Job,
    folder: Path,
    phase: Phase,
    network: Network,
    truth: Reference | None,
    available: int,
    *,
    faults: bool,
) -> Evaluation:
    """What the device, which runs ``network``, comes to on held-out samples, as the job's faults leave it or without them.

    Of outputs that are images a handful under the first seed stay in the folder.
    """
    rates = todo.rates if faults else Rates()
    scheme = todo.scheme if faults else todo.scheme.bare
    await server.set_mode(todo.device, Mode.INFERENCE, rates=rates, seed=todo.seed, scheme=scheme)
    chosen = spread(todo.evaluation_samples, available)
    seeds = evaluation.seeds_of(rates, todo.evaluation_seeds)
    metric, scale = todo.metric or "top1", network.layers[-1].scale
    found: list[list[Measured]] = [[] for _ in seeds]
    shown: list[npt.NDArray[Any]] = []
    for due in evaluation.passes(chosen, seeds, todo.evaluation_batch):
        data = await server.get_data(
            todo.device, iteration=due.iteration, split="test", samples=due.samples.tolist(), seed=due.seed
        )
        if data.outputs is None or (truth is None and data.labels is None):
            raise ValueError("evaluation: the device's held-out samples have no labels")
        of = data.labels if truth is None else truth.at(np.searchsorted(chosen, due.samples))
        assert of is not None
        found[due.run].append(evaluation.measure(data.outputs, scale, of))
        await end_if_stopped(server, todo.device, f"in the evaluation {'after' if phase == 'after' else 'before'} retraining")
        if truth is not None and due.run == 0:
            shown.append(data.outputs[np.isin(due.samples, chosen[samples.places(len(chosen))])])
        if due.samples[-1] == chosen[-1]:
            (value,) = evaluation.accuracy(found[due.run : due.run + 1]).of(metric)
            await server.publish_progress(todo.device, phase, due.run + 1, len(seeds), value, faults=faults, metric=metric)
    if shown:
        name = f"{'faulty' if faults else 'clean'}_{phase}"
        await written(lambda: samples.save(folder, name, np.concatenate(shown)))
    return evaluation.accuracy(found)


def resumed(folder: Path, todo: Job, initial: Network) -> Checkpoint:
    """The newest whole checkpoint of this job, else the start."""
    if not any((folder / name).exists() for name in (checkpoint.FILE, checkpoint.PREVIOUS)):
        return start(todo, initial)
    state, refused = checkpoint.latest(folder, config=job.digest(todo))
    for reason in refused:
        log.warning("checkpoint passed over", reason=reason)
    log.info("resumed", iteration=state.iteration)
    return state


def check_device(todo: Job, agent: State) -> None:
    """Raises ValueError where the device has nothing to run, or other classes than the run was prepared with."""
    for split in ("train", "test"):
        if agent.samples.get(split, 0) < 1:
            raise ValueError(f"device {todo.device!r} has no {split} samples; it reports {agent.samples}")
        if agent.samples[split] > MOST_SAMPLES:
            raise ValueError(
                f"device {todo.device!r} reports {agent.samples[split]} {split} samples; {MOST_SAMPLES} are the most"
            )
    if todo.data and agent.data and todo.data != agent.data:
        raise ValueError(
            f"device {todo.device!r} has other classes or images of another size than this run: the digest of its data is "
            f"{agent.data}, the run's {todo.data}; give both the same --classes and --image-size"
        )


def _server_labels(folder: Path, todo: Job, network: Network, available: int) -> Own | None:
    """The server's own labels or targets of the device's training samples, in the run's folder."""
    if todo.labels != "server":
        return None
    kind = kind_of(todo, network)
    path = folder / job.OWN["labels" if kind == "classes" else "targets"]
    own = _own(path, available)
    fitting(kind, network, own, str(path))
    return own.astype(np.int64) if kind == "classes" else own


def _own(path: Path, available: int) -> npt.NDArray[Any]:
    """An array of the run's folder, one of each of the device's samples; a large one stays on the disk."""
    own: npt.NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r")
    if not own.ndim or len(own) != available:
        raise ValueError(f"{path}: {len(own) if own.ndim else 0} labels, the device has {available} such samples")
    return own


def _received(data: Data) -> Received:
    if data.images is None:
        raise RuntimeError("a pass in training mode ended without its images")
    return Received(data.images, data.activations, data.labels)


def _row(iteration: int, right: bool, done: Step, data: Data, received: Received, wall: float) -> ledger.Row:
    return ledger.Row(
        iteration=iteration,
        loss=done.loss,
        accuracy=100 * done.correct / len(received.images) if right else None,
        grad_norm=done.norm,
        wall_s=wall,
        attempts=data.attempt + 1,
        elements=sum(y.size for y in data.activations.values()),
        mismatched=data.mismatched,
        mismatched_layers=len(data.mismatched_layers),
        repaired=data.repaired,
        layers=[
            ledger.LayerRow(index, repaired=data.repairs.get(index, 0), faithful=index not in data.mismatched_layers)
            for index in sorted(data.activations)
        ],
        input_bytes=received.images.nbytes,
    )
