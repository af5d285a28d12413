"""The run: evaluate the faulty device, retrain it in the loop, evaluate again. Read it from the top."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.int8.parameters import dequantize, quantize
from services.bus import Bus
from services.bus.messages import Phase
from services.trainer import ledger
from services.trainer.core import checkpoint, job, labels, optimiser
from services.trainer.core.checkpoint import Checkpoint
from services.trainer.core.job import Job
from services.trainer.core.replay import Labels, replay
from services.trainer.table1 import Data, Mode, Server, serving

log = structlog.get_logger()

Int64 = npt.NDArray[np.int64]

RESULT = "result.json"
PROGRESS = "progress.jsonl"
RETRAINED = "retrained.safetensors"
EVALUATION = 1 << 30
"""Iteration numbers from here on are evaluations', so that their faults and events are never a training's."""
INITIAL_VERSION = 1
"""Version of the network before retraining; after n iterations it is n more."""


class Result(msgspec.Struct, kw_only=True):
    """Top-1 in per cent of each evaluation, one number a fault seed (one in all without faults)."""

    int8: list[float] = []
    before: list[float] = []
    after: list[float] = []
    model_sha256: str = ""


async def run(bus: Bus, folder: Path, path: str) -> None:
    """The whole job of a run's folder, from wherever an earlier process left it.

    Leaves ``result.json``, ``progress.jsonl`` and ``retrained.safetensors`` there. Raises DeviceError, TrainingDiverged,
    or ValueError for files that do not fit together; each says what to do next.
    """
    todo = job.read(folder)
    initial = storage.load(folder / job.NETWORK)
    result = read_result(folder)
    async with serving(bus, todo.session, patience=todo.patience_s) as server:
        agent = await server.ready(todo.device)
        _check_samples(todo, agent.samples)
        state = _resume(folder, todo, initial)
        if not result.before:
            await server.deploy_model(todo.device, initial, version=INITIAL_VERSION)
            result.int8 = await _evaluate(server, todo, "before", agent.samples["test"], Rates())
            result.before = await _evaluate(server, todo, "before", agent.samples["test"], todo.rates)
            _write_result(folder, result)
        state = await _train(server, folder, todo, initial, state, agent.samples["train"], path)
        if not result.after:
            storage.save(state.network, folder / RETRAINED)
            await server.deploy_model(todo.device, state.network, version=state.version)
            result.after = await _evaluate(server, todo, "after", agent.samples["test"], todo.rates)
            result.model_sha256 = storage.digest(state.network)
            _write_result(folder, result)
        await server.publish_progress(todo.device, "done", todo.iterations, todo.iterations, float(np.mean(result.after)))


async def _train(
    server: Server, folder: Path, todo: Job, initial: Network, state: Checkpoint, available: int, path: str
) -> Checkpoint:
    """Iterations ``state.iteration`` to the last. ``state``'s arrays are updated in place."""
    if state.iteration == todo.iterations:
        return state
    book, rows = ledger.Ledger(), list[ledger.Row]()
    await server.on_timing(todo.device, book.add)
    ledger.truncate(folder / PROGRESS, state.iteration)
    order = np.random.Generator(np.random.PCG64())
    order.bit_generator.state = state.generator
    teacher = Engine(initial, path) if todo.labels.startswith("teacher") else None
    own = _server_labels(folder, todo)
    network, version = state.network, state.version
    saved = str(folder / checkpoint.FILE) if (folder / checkpoint.FILE).exists() else None

    await server.set_mode(
        todo.device,
        Mode.TRAINING,
        rates=todo.rates,
        seed=todo.seed,
        scheme=todo.scheme,
    )
    await server.deploy_model(todo.device, network, version=version)
    engine = await asyncio.to_thread(Engine, network, path)
    for iteration in range(state.iteration, todo.iterations):
        start = time.perf_counter()
        samples = order.choice(available, size=min(todo.batch, available), replace=False)
        # What the device computed on this batch, faults and all.
        data = await server.get_data(todo.device, iteration=iteration, split="train", samples=samples.tolist())
        assert data.images is not None
        received = time.perf_counter()
        x = network.quantize_images(data.images)
        truth = _labels(todo, data, own, samples, teacher)
        # Backward on exactly that, then one step of the float32 master weights.
        found = await asyncio.to_thread(replay, network, x, data.activations, truth, engine.fault_free)
        optimiser.guard(found, iteration, saved)
        optimiser.step(state.parameters, state.velocity, found, todo.sgd)
        stepped = time.perf_counter()
        network = quantize(network, state.parameters)
        version += 1
        quantised = time.perf_counter()
        # The device gets the model while the server writes its checkpoint; the next forward waits for it there.
        await server.deploy_model(todo.device, network, version=version, iteration=iteration, wait=False)
        engine = await asyncio.to_thread(Engine, network, path)
        state = state._replace(iteration=iteration + 1, version=version, generator=order.bit_generator.state, network=network)
        await server.publish_timing(todo.device, "backward", iteration, stepped - received)
        await server.publish_timing(todo.device, "quantise", iteration, quantised - stepped)
        rows.append(_row(iteration, found.loss, found.correct, found.norm, data, time.perf_counter() - start))
        await server.publish_progress(todo.device, "train", iteration + 1, todo.iterations, found.loss, found.norm)
        # Events of an iteration may still be under way when it ends; by the one after next they are here. A checkpoint
        # does not wait for them: every row that it will not do again must be on the disk first.
        due = (iteration + 1) % todo.checkpoint_every == 0 or iteration + 1 == todo.iterations
        _settle(folder, book, rows, keep=0 if due else 2)
        if due:
            saved = str(await asyncio.to_thread(checkpoint.write, folder, state))
    return state


async def _evaluate(server: Server, todo: Job, phase: Phase, available: int, rates: Rates) -> list[float]:
    """Top-1 in per cent on held-out samples, for each fault seed; a single run where there are no faults."""
    seeds = todo.evaluation_seeds if rates != Rates() else todo.evaluation_seeds[:1]
    scheme = todo.scheme if rates != Rates() else msgspec.structs.replace(todo.scheme, protected=())
    await server.set_mode(todo.device, Mode.INFERENCE, rates=rates, seed=todo.seed, scheme=scheme)
    samples = range(min(todo.evaluation_samples, available))
    found = []
    for i, seed in enumerate(seeds):
        right = 0
        for start in range(0, len(samples), todo.evaluation_batch):
            data = await server.get_data(
                todo.device,
                iteration=EVALUATION + start // todo.evaluation_batch,
                split="test",
                samples=samples[start : start + todo.evaluation_batch],
                seed=seed,
            )
            assert data.outputs is not None
            if data.labels is None:
                raise ValueError("evaluation: the device's held-out samples have no labels")
            right += int((data.outputs.reshape(len(data.labels), -1).argmax(axis=1) == data.labels).sum())
        found.append(100 * right / len(samples))
        await server.publish_progress(todo.device, phase, i + 1, len(seeds), found[-1])
    return found


def _resume(folder: Path, todo: Job, initial: Network) -> Checkpoint:
    """The newest whole checkpoint of this job, else the start."""
    config = job.digest(todo)
    if (folder / checkpoint.FILE).exists():
        state, refused = checkpoint.latest(folder, config=config)
        for reason in refused:
            log.warning("checkpoint passed over", reason=reason)
        log.info("resumed", iteration=state.iteration)
        return state
    parameters = dequantize(initial)
    generator = np.random.PCG64(todo.seed)
    return Checkpoint(
        iteration=0,
        version=INITIAL_VERSION,
        config=config,
        generator=dict(generator.state),
        parameters=parameters,
        velocity=optimiser.zeros_like(parameters),
        network=initial,
    )


def _check_samples(todo: Job, samples: dict[str, int]) -> None:
    for split in ("train", "test"):
        if samples.get(split, 0) < 1:
            raise ValueError(f"device {todo.device!r} has no {split} samples; it reports {samples}")


def _server_labels(folder: Path, todo: Job) -> Int64 | None:
    """The server's own labels of the device's training samples: ``train_labels.npy`` in the run's folder."""
    if todo.labels != "server":
        return None
    own: npt.NDArray[Any] = np.load(folder / "train_labels.npy", allow_pickle=False)
    if own.ndim != 1 or not np.issubdtype(own.dtype, np.integer):
        raise ValueError(f"{folder / 'train_labels.npy'}: expected integers (N,), got {own.dtype} of {own.shape}")
    return own.astype(np.int64)


def _labels(todo: Job, data: Data, own: Int64 | None, samples: Int64, teacher: Engine | None) -> Labels:
    taught = None
    if teacher is not None:
        assert data.images is not None
        outputs = teacher.run(teacher.network.quantize_images(data.images))
        taught = labels.teach(teacher.network, outputs[-1], soft=todo.labels == "teacher-soft")
    return labels.choose(todo.labels, device=data.labels, server=None if own is None else own[samples], teacher=taught)


def _row(iteration: int, loss: float, correct: int, norm: float, data: Data, wall: float) -> ledger.Row:
    assert data.images is not None
    return ledger.Row(
        iteration=iteration,
        loss=loss,
        accuracy=100 * correct / len(data.images),
        grad_norm=norm,
        wall_s=wall,
        attempts=data.attempt + 1,
        elements=sum(y.size for y in data.activations.values()),
        mismatched=data.mismatched,
        mismatched_layers=len(data.mismatched_layers),
        repaired=data.repaired,
        input_bytes=data.images.nbytes,
    )


def _settle(folder: Path, book: ledger.Ledger, rows: list[ledger.Row], keep: int) -> None:
    """Writes all rows but the last ``keep`` to the progress file."""
    done = len(rows) - keep
    if done > 0:
        ledger.append(folder / PROGRESS, [book.fill(row) for row in rows[:done]])
        book.forget(rows[done - 1].iteration)
        del rows[:done]


def read_result(folder: Path) -> Result:
    """What is known of a run so far, nothing before its first evaluation."""
    path = folder / RESULT
    return msgspec.json.decode(path.read_bytes(), type=Result) if path.exists() else Result()


def _write_result(folder: Path, result: Result) -> None:
    fresh = folder / f".{RESULT}"
    fresh.write_bytes(msgspec.json.encode(result))
    fresh.replace(folder / RESULT)
