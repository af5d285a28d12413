"""The whole loop as plain function calls in one process: no bus, no other processes.

It computes what the pipeline of services computes, step for step, and ends with the same model bit for bit. So it is
the peer that the pipeline's overhead is measured against, and the way to try settings in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from accelsim.accelerators import Simulated
from accelsim.datasets import Dataset, Int64
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8.network import INPUT, Conv, Int8, Network, UInt8
from accelsim.int8.parameters import dequantize, quantize
from services.codec.core import inputs, layers, model
from services.edge_agent.core.forward import Executed, Votes, execute
from services.edge_agent.core.plan import Plan
from services.trainer.core import optimiser
from services.trainer.core.evaluation import FIRST as EVALUATION
from services.trainer.core.job import Job
from services.trainer.core.labels import choose, teach
from services.trainer.core.replay import replay
from services.voter.core.vote import settled_vote, vote
from services.voter.voter import TMR


class Iteration(msgspec.Struct, kw_only=True):
    """What one iteration came to. Bytes are bodies alone, without the framing that the bus adds."""

    iteration: int
    loss: float
    grad_norm: float
    correct: int
    elements: int
    mismatched: int
    """Elements of the server's tensors that differ from the device's."""
    repaired: int
    """Elements that were wrong before the repair, their effects on later layers counted in."""
    input_bytes: int
    layer_bytes: int
    model_bytes: int
    model_full_bytes: int
    seconds: dict[str, float]
    """Host time of each stage."""


class Retrained(msgspec.Struct):
    """The last network and one record an iteration."""

    network: Network
    iterations: list[Iteration]


def retrain(
    network: Network,
    data: Dataset,
    job: Job,
    *,
    path: str = "auto",
    watch: Callable[[Iteration, Network], None] | None = None,
) -> Retrained:
    """Retrain an int8 network on a simulated faulty device, as ``r2f retrain`` does over the bus with this job.

    ``watch`` is called after each iteration. Labels come from ``data`` whether the job says device or server.
    Raises ValueError for the golden codec, and TrainingDiverged.
    """
    if job.scheme.codec == "golden":
        raise ValueError("in process: codec golden is not covered; take direct or chained")
    order = np.random.Generator(np.random.PCG64(job.seed))
    parameters = dequantize(network)
    velocity = optimiser.zeros_like(parameters)
    teacher = Engine(network, path) if job.labels.startswith("teacher") else None
    device = Simulated(job.rates, job.seed, job.device, path)
    known: set[bytes] = set()
    done: list[Iteration] = []
    on_device, base = network, None
    for iteration in range(job.iterations):
        clock = _Clock()
        # Model: server to device.
        sent_model = model.encode(base, network)
        on_device = model.decode(on_device if base is not None else None, sent_model)
        clock.tick("downlink")
        device.load(on_device)
        engine = Engine(network, path)
        clock.tick("load")
        # Device: images, three executions a layer, votes, increments.
        count = len(data.train_images)
        samples = order.choice(count, size=min(job.batch, count), replace=False)
        images, truth = data.train_images[samples], data.train_labels[samples]
        sent_inputs, fresh = _encode_images(images, known)
        clock.tick("compress")
        executed, votes, actual = _run(device, on_device, images, iteration, job, clock)
        bodies = {
            e.index: layers.encode(actual[e.index], votes.get(e.index), job.scheme.codec) for e in executed
        }  # fmt: skip
        digests = {e.index: layers.digest(actual[e.index]) for e in executed}
        clock.tick("compress")
        # Server: the images again, then each layer from what the device fed it.
        received = _decode_images(sent_inputs, fresh, images)
        outputs = _rebuild(network, engine, received, bodies)
        repaired = wrong = 0
        for e in executed:
            if layers.digest(outputs[e.index]) != digests[e.index]:
                wrong += int((outputs[e.index] != actual[e.index]).sum())
        if wrong and job.scheme.exact and job.scheme.codec == "chained":
            # What repairs over the link come to; their round trips have no meaning here.
            outputs = actual
            repaired, wrong = wrong, 0
        clock.tick("decompress")
        taught = None
        if teacher is not None:
            taught = teach(network, teacher.run(network.quantize_images(received))[-1], soft=job.labels == "teacher-soft")
        labels = choose(job.labels, device=truth, server=truth, teacher=taught)
        found = replay(network, network.quantize_images(received), outputs, labels, engine.fault_free)
        optimiser.guard(found, iteration, None)
        optimiser.step(parameters, velocity, found, job.sgd)
        clock.tick("backward")
        base, network = network, quantize(network, parameters)
        clock.tick("quantise")
        done.append(
            Iteration(
                iteration=iteration,
                loss=found.loss,
                grad_norm=found.norm,
                correct=found.correct,
                elements=sum(y.size for y in outputs.values()),
                mismatched=wrong,
                repaired=repaired,
                input_bytes=len(sent_inputs),
                layer_bytes=sum(map(len, bodies.values())),
                model_bytes=len(sent_model),
                model_full_bytes=sum(layer.weight.nbytes + layer.bias.nbytes for _, layer in network.convs()),
                seconds=clock.seconds,
            )
        )
        if watch is not None:
            watch(done[-1], network)
    return Retrained(network, done)


def evaluate(
    network: Network,
    images: UInt8,
    labels: Int64,
    rates: Rates,
    seeds: Sequence[int],
    *,
    device: str = "device",
    batch: int = 128,
    top: int = 1,
    path: str = "auto",
) -> list[float]:
    """Top-k accuracy in per cent of the faulty device, for each fault seed; a single number where there are no faults.

    The same faults as in the pipeline's evaluation of as many samples in as large batches.
    """
    accelerator = Simulated(rates, 0, device, path)
    accelerator.load(network)
    found = []
    for seed in seeds if rates != Rates() else seeds[:1]:
        accelerator.seed = seed
        right = 0
        for start in range(0, len(images), batch):
            x = network.quantize_images(images[start : start + batch])
            output = accelerator.run(x, iteration=EVALUATION + start // batch)[-1]
            right += _right(output, labels[start : start + batch], top)
        found.append(100 * right / len(images))
    return found


def _right(output: Int8, labels: Int64, top: int) -> int:
    """How many labels are among the ``top`` largest outputs; among equals the lowest class counts first."""
    order = np.argsort(-output.reshape(len(labels), -1).astype(np.int16), axis=1, kind="stable")
    return int((order[:, :top] == labels[:, None]).any(axis=1).sum())


class _Clock:
    """Host time since the last tick, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def tick(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _run(
    device: Simulated, network: Network, images: UInt8, iteration: int, job: Job, clock: _Clock
) -> tuple[list[Executed], Votes, Votes]:
    """Every MAC layer's executions, the votes that increments are against, and every layer's actual output."""
    replicas = 1 if job.scheme.codec == "direct" else job.scheme.replicas
    referee = job.scheme.referee and job.scheme.codec == "chained"
    plan = Plan(replicas=replicas, protected=frozenset(job.scheme.protected), referee=referee)
    steps = execute(network, device.engine, device, network.quantize_images(images), iteration, plan)
    executed: list[Executed] = []
    votes: Votes = {}
    actual: Votes = {}
    answer: Votes | None = None
    while True:
        try:
            segment = steps.send(answer)
        except StopIteration:
            clock.tick("forward")
            return executed, votes, actual
        clock.tick("forward")
        for e in segment.layers:
            actual[e.index] = vote(e.replicas[:TMR], job.scheme.vote) if e.protected else e.replicas[0]
            if e.settled is not None and not e.settled.direct:
                votes[e.index] = settled_vote(e.replicas, job.scheme.vote, e.settled.positions, e.settled.values)
            elif e.settled is None and len(e.replicas) > 1:
                votes[e.index] = vote(e.replicas, job.scheme.vote)
        clock.tick("tmr")
        executed += segment.layers
        answer = {e.index: actual[e.index] for e in segment.layers} if segment.awaits_vote else None


def _encode_images(images: UInt8, known: set[bytes]) -> tuple[bytes, list[int]]:
    """Those images that the server has not seen, as bytes, and their places in the batch."""
    hashes = [inputs.sample_hash(image) for image in images]
    fresh = [i for i, name in enumerate(hashes) if name not in known]
    known.update(hashes)
    return inputs.encode(images[fresh]) if fresh else b"", fresh


def _decode_images(body: bytes, fresh: list[int], batch: UInt8) -> UInt8:
    """The batch as the server has it: fresh images from the link, the others from an earlier iteration."""
    received = batch.copy()
    if fresh:
        h, w, c = batch.shape[1:]
        received[fresh] = inputs.decode(body, len(fresh), (h, w, c))
    return received


def _rebuild(network: Network, engine: Engine, images: UInt8, bodies: dict[int, bytes]) -> dict[int, Int8]:
    """The device's outputs of every MAC layer, each predicted from the ones before it."""
    values: dict[int, Int8] = {INPUT: network.quantize_images(images)}
    for index, layer in enumerate(network.layers):
        operands = [values[i] for i in layer.inputs]
        if isinstance(layer, Conv):
            body = bodies[index]
            prediction = engine.fault_free(index, operands) if layers.needs_prediction(body) else None
            values[index] = layers.decode(body, prediction, (len(images), *layer.shape))
        else:
            values[index] = engine.fault_free(index, operands)
    return {index: values[index] for index, _ in network.convs()}
