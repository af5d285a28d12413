"""The run: evaluate the device without and with its faults, retrain it in the loop, evaluate again. Read it from the top."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from accelsim.datasets import spread
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from services.bus import Bus
from services.bus.messages import Phase, State
from services.trainer.core import checkpoint, evaluation, job, ledger, result
from services.trainer.core.checkpoint import Checkpoint
from services.trainer.core.evaluation import Counts, Evaluation
from services.trainer.core.job import Job
from services.trainer.core.step import INITIAL_VERSION, Received, Step, draw, learner, start, step
from services.trainer.remote import Data
from services.trainer.table1 import Mode, Server, serving

log = structlog.get_logger()

Int64 = npt.NDArray[np.int64]


async def run(bus: Bus, folder: Path, path: str) -> None:
    """The whole job of a run's folder, from wherever an earlier process left it.

    Leaves ``result.json``, ``progress.jsonl`` and ``retrained.safetensors`` there. Raises DeviceError, TrainingDiverged,
    or ValueError for files that do not fit together; each says what to do next.
    """
    todo = job.read(folder)
    initial = storage.load(folder / job.NETWORK)
    job.check(todo, initial)
    found = result.read(folder)

    async with serving(bus, todo.session, patience=todo.patience_s) as server:
        agent = await server.ready(todo.device)
        _check_device(todo, agent)
        state = _resume(folder, todo, initial)
        if found.faulty_before is None:
            await server.deploy_model(todo.device, initial, version=INITIAL_VERSION)
            if found.clean_before is None:
                found.clean_before = await _evaluate(server, todo, "before", agent.samples["test"], faults=False)
                result.write(folder, found)
            found.faulty_before = await _evaluate(server, todo, "before", agent.samples["test"], faults=True)
            result.write(folder, found)
        state = await _train(server, folder, todo, initial, state, agent.samples["train"], path)
        if found.faulty_after is None:
            storage.save(state.network, folder / result.RETRAINED)
            await server.deploy_model(todo.device, state.network, version=state.version)
            if found.clean_after is None:
                found.clean_after = await _evaluate(server, todo, "after", agent.samples["test"], faults=False)
                result.write(folder, found)
            found.faulty_after = await _evaluate(server, todo, "after", agent.samples["test"], faults=True)
            found.model_sha256 = storage.digest(state.network)
            result.write(folder, found)
        await server.publish_progress(todo.device, "done", todo.iterations, todo.iterations, fmean(found.faulty_after.top1))


async def _train(
    server: Server, folder: Path, todo: Job, initial: Network, state: Checkpoint, available: int, path: str
) -> Checkpoint:
    """Iterations ``state.iteration`` to the last. ``state``'s arrays are updated in place."""
    if state.iteration == todo.iterations:
        return state
    book, rows = ledger.Ledger(), list[ledger.Row]()
    await server.on_timing(todo.device, book.add)
    progress = folder / result.PROGRESS
    ledger.truncate(progress, state.iteration)
    learning = learner(todo, initial, state, path)
    own = _server_labels(folder, todo, available)
    network, version = state.network, state.version
    saved = str(folder / checkpoint.FILE) if (folder / checkpoint.FILE).exists() else None

    await server.set_mode(todo.device, Mode.TRAINING, rates=todo.rates, seed=todo.seed, scheme=todo.scheme)
    await server.deploy_model(todo.device, network, version=version)
    engine = await asyncio.to_thread(Engine, network, path)
    for iteration in range(state.iteration, todo.iterations):
        begin = time.perf_counter()
        samples = draw(learning, available)
        # What the device computed on this batch, faults and all, and one step on exactly that.
        data = await server.get_data(todo.device, iteration=iteration, split="train", samples=samples.tolist())
        received = _received(data, None if own is None else own[samples])
        done = await asyncio.to_thread(step, learning, network, engine, received, iteration, saved)
        network, version = done.network, version + 1
        # The device gets the model while the server writes its checkpoint; the next forward waits for it there.
        await server.deploy_model(todo.device, network, version=version, iteration=iteration, wait=False)
        engine = await asyncio.to_thread(Engine, network, path)
        state = state._replace(
            iteration=iteration + 1, version=version, generator=dict(learning.order.bit_generator.state), network=network
        )
        await server.publish_timing(todo.device, "backward", iteration, done.backward_s)
        await server.publish_timing(todo.device, "quantise", iteration, done.quantise_s)
        rows.append(_row(iteration, done, data, received, time.perf_counter() - begin))
        await server.publish_progress(todo.device, "train", iteration + 1, todo.iterations, done.loss, done.norm)
        # Events of an iteration may still be under way when it ends; by the one after next they are here. A checkpoint
        # does not wait for them: every row that it will not do again must be on the disk first.
        due = (iteration + 1) % todo.checkpoint_every == 0 or iteration + 1 == todo.iterations
        book.settle(progress, rows, keep=0 if due else 2)
        if due:
            saved = str(await asyncio.to_thread(checkpoint.write, folder, state))
    return state


async def _evaluate(server: Server, todo: Job, phase: Phase, available: int, *, faults: bool) -> Evaluation:
    """Accuracy on held-out samples, as the job's faults leave it or without them."""
    rates = todo.rates if faults else Rates()
    scheme = todo.scheme if faults else todo.scheme.bare
    await server.set_mode(todo.device, Mode.INFERENCE, rates=rates, seed=todo.seed, scheme=scheme)
    samples = spread(todo.evaluation_samples, available)
    seeds = evaluation.seeds_of(rates, todo.evaluation_seeds)
    counts: list[list[Counts]] = [[] for _ in seeds]
    for due in evaluation.passes(samples, seeds, todo.evaluation_batch):
        data = await server.get_data(
            todo.device, iteration=due.iteration, split="test", samples=due.samples.tolist(), seed=due.seed
        )
        if data.outputs is None or data.labels is None:
            raise ValueError("evaluation: the device's held-out samples have no labels")
        counts[due.run].append(evaluation.count(data.outputs, data.labels))
        if due.samples[-1] == samples[-1]:
            top1 = evaluation.accuracy(counts[due.run : due.run + 1]).top1[0]
            await server.publish_progress(todo.device, phase, due.run + 1, len(seeds), top1, faults=faults)
    return evaluation.accuracy(counts)


def _resume(folder: Path, todo: Job, initial: Network) -> Checkpoint:
    """The newest whole checkpoint of this job, else the start."""
    if not (folder / checkpoint.FILE).exists():
        return start(todo, initial)
    state, refused = checkpoint.latest(folder, config=job.digest(todo))
    for reason in refused:
        log.warning("checkpoint passed over", reason=reason)
    log.info("resumed", iteration=state.iteration)
    return state


def _check_device(todo: Job, agent: State) -> None:
    """Raises ValueError where the device has nothing to run, or other classes than the run was prepared with."""
    for split in ("train", "test"):
        if agent.samples.get(split, 0) < 1:
            raise ValueError(f"device {todo.device!r} has no {split} samples; it reports {agent.samples}")
    if todo.batch > agent.samples["train"]:
        raise ValueError(
            f"device {todo.device!r} has {agent.samples['train']} training samples, fewer than a batch of {todo.batch}; "
            "start a run with a smaller --batch"
        )
    if todo.data and agent.data and todo.data != agent.data:
        raise ValueError(
            f"device {todo.device!r} has other classes or images of another size than this run: the digest of its data is "
            f"{agent.data}, the run's {todo.data}; give both the same --classes and --image-size"
        )


def _server_labels(folder: Path, todo: Job, available: int) -> Int64 | None:
    """The server's own labels of the device's training samples: ``train_labels.npy`` in the run's folder."""
    if todo.labels != "server":
        return None
    path = folder / "train_labels.npy"
    own: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    if own.ndim != 1 or not np.issubdtype(own.dtype, np.integer):
        raise ValueError(f"{path}: expected integers (N,), got {own.dtype} of {own.shape}")
    if len(own) != available:
        raise ValueError(f"{path}: {len(own)} labels, the device has {available} training samples")
    return own.astype(np.int64)


def _received(data: Data, own: Int64 | None) -> Received:
    if data.images is None:
        raise RuntimeError("a pass in training mode ended without its images")
    return Received(data.images, data.activations, data.labels, own)


def _row(iteration: int, done: Step, data: Data, received: Received, wall: float) -> ledger.Row:
    return ledger.Row(
        iteration=iteration,
        loss=done.loss,
        accuracy=100 * done.correct / len(received.images),
        grad_norm=done.norm,
        wall_s=wall,
        attempts=data.attempt + 1,
        elements=sum(y.size for y in data.activations.values()),
        mismatched=data.mismatched,
        mismatched_layers=len(data.mismatched_layers),
        repaired=data.repaired,
        input_bytes=received.images.nbytes,
    )
