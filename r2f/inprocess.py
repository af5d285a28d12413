"""The whole loop as plain function calls in one process: no bus, no other processes.

The services' cores in the order of an iteration: the device's pass, the voter's votes, both ends of the link, the trainer's
step. It ends with the pipeline's model, bit for bit, and has as many bytes to send. So it is the peer that the pipeline's
overhead is measured against, and the way to try settings in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np

from accelsim.accelerators import Accelerator, Simulated
from accelsim.datasets import Dataset, Int64
from accelsim.engine import Engine, shared
from accelsim.faults import Rates
from accelsim.int8.network import INPUT, Int8, Network, UInt8
from services.codec.core import inputs, layers, model, repair
from services.codec.core.kept import Kept
from services.edge_agent.core.camera import photograph
from services.edge_agent.core.forward import Done, Executed, Segment, Votes, advance, execute, similarity
from services.edge_agent.core.plan import plan_of
from services.scheme import CHAINED, Scheme
from services.trainer.core import evaluation
from services.trainer.core.evaluation import Counts, Evaluation
from services.trainer.core.job import Job
from services.trainer.core.step import Received, draw, learner, start, step
from services.voter.core.vote import settled_vote, vote
from services.voter.voter import TMR

Factory = Callable[[Rates, int, str], Accelerator]
"""(fault rates, seed, device name) to an accelerator without a network."""
T = TypeVar("T")


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
    """Elements that were wrong until a repair mended them."""
    input_bytes: int
    layer_bytes: int
    repair_bytes: int
    """Of the corrections; in no other number."""
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
    accelerator: Factory | None = None,
    watch: Callable[[Iteration, Network], None] | None = None,
) -> Retrained:
    """Retrain an int8 network on a faulty device, as ``r2f retrain`` does over the bus with this job.

    ``accelerator`` makes the device's, one with soft errors where None is given; ``path`` is the engine's. ``watch`` is
    called after each iteration. Labels come from ``data`` whether the job says device or server.
    Raises TrainingDiverged, and ValueError where job, network and data do not fit together.
    """
    learning = learner(job, network, start(job, network), path)
    device = _Device(job.scheme, job.device, accelerator or _simulated(path), path)
    link = _Link(job.scheme, path)
    done: list[Iteration] = []
    for iteration in range(job.iterations):
        clock = _Clock()
        sent_model = link.down(network)
        clock.tick("downlink")
        engine = Engine(network, path)
        device.load(link.on_device, job.rates, job.seed)
        clock.tick("load")
        samples = draw(learning, len(data.train_images))
        images, truth = data.train_images[samples], data.train_labels[samples]
        files: list[bytes] = []
        if job.scheme.jpeg:
            files, images = photograph(images, job.scheme.jpeg)
        received = link.begin(engine, images, files)
        clock.tick("compress")
        direct = device.under_threshold(job.seed)
        clock.tick("forward")
        steps = device.execute(images, iteration, training=True, direct=direct)
        _drive(steps, job.scheme, golden=job.scheme.codec == "golden", each=link.up, clock=clock)
        batch = Received(received, link.outputs(), truth, truth)
        made = step(learning, network, engine, batch, iteration, None)
        clock.seconds |= {"backward": made.backward_s, "quantise": made.quantise_s}
        done.append(
            Iteration(
                iteration=iteration,
                loss=made.loss,
                grad_norm=made.norm,
                correct=made.correct,
                elements=sum(y.size for y in batch.activations.values()),
                mismatched=link.mismatched,
                repaired=link.repaired,
                input_bytes=link.input_bytes,
                layer_bytes=link.layer_bytes,
                repair_bytes=link.repair_bytes,
                model_bytes=len(sent_model),
                model_full_bytes=sum(layer.weight.nbytes + layer.bias.nbytes for _, layer in network.convs()),
                seconds=clock.seconds,
            )
        )
        network = made.network
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
    scheme: Scheme = CHAINED,
    device: str = "device",
    batch: int = 128,
    path: str = "auto",
    accelerator: Factory | None = None,
) -> Evaluation:
    """Accuracy of the faulty device on images (N, H, W, C), for each fault seed; one number where there are no faults.

    The same faults as in the pipeline's evaluation of as many samples in as large batches, with the scheme's camera and
    protected layers.
    """
    running = _Device(scheme, device, accelerator or _simulated(path), path)
    seeds = evaluation.seeds_of(rates, seeds)
    counts: list[list[Counts]] = [[] for _ in seeds]
    for due in evaluation.passes(np.arange(len(images)), seeds, batch):
        chosen = images[due.samples]
        if scheme.jpeg:
            _, chosen = photograph(chosen, scheme.jpeg)
        running.load(network, rates, due.seed)
        output = _drive(running.execute(chosen, due.iteration, training=False), scheme)
        counts[due.run].append(evaluation.count(output, labels[due.samples]))
    return evaluation.accuracy(counts)


def _simulated(path: str) -> Factory:
    return lambda rates, seed, device: Simulated(rates, seed, device, path)


class _Device:
    """What the edge agent holds between passes."""

    def __init__(self, scheme: Scheme, name: str, factory: Factory, path: str) -> None:
        self.scheme = scheme
        self.name = name
        self.factory = factory
        self.path = path
        self.made_for: tuple[Network, Rates, int] | None = None
        self.shares: dict[int, float] | None = None

    def load(self, network: Network, rates: Rates, seed: int) -> None:
        """Make a network the one that runs, under these faults."""
        if self.made_for is not None and self.made_for[0] is network and self.made_for[1:] == (rates, seed):
            return
        self.network = network
        self.engine = shared(network, self.path)
        self.accelerator = self.factory(rates, seed, self.name)
        self.accelerator.load(network)
        self.made_for = (network, rates, seed)

    def under_threshold(self, seed: int) -> frozenset[int]:
        """Of the golden codec: the layers that go as they are. Measured at the first call."""
        if self.scheme.codec != "golden" or self.scheme.theta <= 0:
            return frozenset()
        if self.shares is None:
            plan = plan_of(self.scheme, training=True)
            steps = similarity(self.network, self.engine, self.accelerator, plan, seed)
            self.shares = _drive(steps, self.scheme, golden=True)
        return frozenset(i for i, share in self.shares.items() if share < self.scheme.theta)

    def execute(
        self, images: UInt8, iteration: int, *, training: bool, direct: frozenset[int] = frozenset()
    ) -> Generator[Segment, Votes | None, Int8]:
        """The pass on images (N, H, W, C); see ``core.forward.execute``."""
        plan = plan_of(self.scheme, training=training, direct=direct)
        x = self.network.quantize_images(images)
        return execute(self.network, self.engine, self.accelerator, x, iteration, plan)


def _drive(
    steps: Generator[Segment, Votes | None, T],
    scheme: Scheme,
    *,
    golden: bool = False,
    each: Callable[[list[Ballot]], None] | None = None,
    clock: _Clock | None = None,
) -> T:
    """Run a pass to its end, voting on the way; ``each`` gets every segment's layers, voted. ``golden``: the votes go on."""
    clock = clock or _Clock()
    votes: Votes | None = None
    while True:
        segment = advance(steps, votes)
        clock.tick("forward")
        if isinstance(segment, Done):
            return segment.value
        voted = [_vote(executed, scheme) for executed in segment.layers]
        votes = {layer.index: layer.vote if golden and layer.vote is not None else layer.actual for layer in voted}
        clock.tick("tmr")
        if each is not None:
            each(voted)
            clock.tick("link")
        segment.done()


@dataclass(frozen=True, slots=True)
class Ballot:
    """A layer as the voter passes it on."""

    index: int
    actual: Int8
    vote: Int8 | None
    direct: bool


def _vote(executed: Executed, scheme: Scheme) -> Ballot:
    settled = executed.settled
    vote_ = None
    if settled is not None and not settled.direct:
        vote_ = settled_vote(executed.replicas, scheme.vote, settled.positions, settled.values)
    elif len(executed.replicas) > 1:
        vote_ = vote(executed.replicas, scheme.vote)
    actual = executed.replicas[0] if executed.actual is None else executed.actual
    if executed.protected:
        actual = vote(executed.replicas[:TMR], scheme.vote)
    return Ballot(executed.index, actual, vote_, executed.direct or (settled is not None and settled.direct))


class _Link:
    """Both ends of the link, and what crossed it in the running iteration."""

    def __init__(self, scheme: Scheme, path: str) -> None:
        self.scheme = scheme
        self.path = path
        self.exact = scheme.exact and scheme.codec == "chained"
        self.base: Network | None = None
        self.on_device: Network
        self.known: dict[bytes, UInt8] = {}

    def down(self, network: Network) -> bytes:
        body = model.encode(self.base, network)
        self.on_device = model.decode(self.on_device if self.base is not None else None, body)
        self.base = network
        return body

    def begin(self, engine: Engine, images: UInt8, files: list[bytes]) -> UInt8:
        self.engine = engine
        self.kept = Kept(self.on_device, self.path, 0, 0, images) if self.exact else None
        hashes = [inputs.sample_hash(image) for image in images]
        fresh = [i for i, name in enumerate(hashes) if self.scheme.float_inputs or name not in self.known]
        if self.scheme.float_inputs:
            body = inputs.floats(images[fresh])
        else:
            body = inputs.pack([files[i] for i in fresh]) if files else inputs.encode(images[fresh])
        self.input_bytes, self.layer_bytes, self.repair_bytes = len(body), 0, 0
        self.mismatched = self.repaired = self.repairs = 0
        h, w, c = images.shape[1:]
        if fresh:
            for i, image in zip(fresh, inputs.decode(body, len(fresh), (h, w, c)), strict=True):
                self.known[hashes[i]] = image
        received = np.stack([self.known[name] for name in hashes])
        self.values = {INPUT: engine.network.quantize_images(received)}
        self.reference = dict(self.values)
        self.next = 0
        return received

    def up(self, voted: list[Ballot]) -> None:
        sent = []
        for layer in voted:
            vote_ = None if layer.direct else layer.vote
            if self.kept is not None:
                vote_ = self.kept.reference(layer.index, vote_)
            body = layers.encode(layer.actual, vote_, self.scheme.codec)
            if self.kept is not None:
                self.kept.keep(layer.index, layer.actual, body)
            self.layer_bytes += len(body)
            sent.append((layer, body, layers.digest(layer.actual)))
        corrections: dict[int, bytes] = {}
        for layer, body, digest in sent:
            while not self._rebuild(layer, body, digest, corrections):
                assert self.kept is not None
                self.repairs += 1
                digests = repair.channel_digests(self.built).astype("<u4").tobytes() if self.repairs == 1 else None
                found = self.kept.correct(layer.index, digests)
                self.repair_bytes += sum(map(len, found.values()))
                corrections |= found

    def _rebuild(self, voted: Ballot, body: bytes, digest: int, corrections: dict[int, bytes]) -> bool:
        network = self.engine.network
        golden = self.scheme.codec == "golden"
        for index in range(self.next, voted.index):
            of = network.layers[index].inputs
            self.values[index] = self.engine.fault_free(index, [self.values[i] for i in of])
            if golden:
                self.reference[index] = self.engine.fault_free(index, [self.reference[i] for i in of])
        self.next = index = voted.index
        operand = network.layers[index].inputs[0]
        prediction = None
        if golden:
            prediction = self.reference[index] = self.engine.fault_free(index, [self.reference[operand]])
        elif layers.needs_prediction(body):
            prediction = self.engine.fault_free(index, [self.values[operand]])
        built = layers.decode(body, prediction, voted.actual.shape)
        repaired = 0
        if index in corrections and layers.needs_prediction(body):
            mended = repair.apply(corrections[index], built)
            repaired = int(np.count_nonzero(mended != built))
            built = mended
        self.built = built
        if layers.digest(built) != digest:
            if self.exact:
                return False
            self.mismatched += int(np.count_nonzero(built != voted.actual))
        self.repaired += repaired
        self.values[index] = built
        self.next += 1
        return True

    def outputs(self) -> dict[int, Int8]:
        return {index: self.values[index] for index, _ in self.engine.network.convs()}


class _Clock:
    """Host time since the last tick, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def tick(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
