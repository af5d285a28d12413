"""The whole loop as plain function calls in one process: no bus, no other processes.

The services' cores in the order of an iteration: the device's pass, the voter's votes, both ends of the link, the trainer's
step. It ends with the pipeline's model, bit for bit, and has as many bytes to send. So it is the peer that the pipeline's
overhead is measured against, and the way to try settings in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, assert_never

import msgspec
import numpy as np

from accelsim.accelerators import Factory, build, vote_at
from accelsim.datasets import Dataset, Int64
from accelsim.engine import shared
from accelsim.faults import Rates
from accelsim.faults.permanent import FaultMap
from accelsim.faults.worn import exact
from accelsim.int8.network import Activation, Network, UInt8
from services.codec.core.device_end import DeviceEnd
from services.codec.core.rebuild import Rebuild, Wrong
from services.codec.core.server_end import ServerEnd
from services.edge_agent.core.answer import answer
from services.edge_agent.core.camera import photograph
from services.edge_agent.core.forward import Done, Executed, Segment, Votes, advance, execute, similarity
from services.edge_agent.core.plan import plan_of, ports_of, thresholded
from services.known import known_faults
from services.scheme import CHAINED, Scheme
from services.scheme import check as check_scheme
from services.trainer.core import evaluation, objective, recipe
from services.trainer.core.course import Answered, Answers, Batch, Deploy, Learnt, Reply, course
from services.trainer.core.evaluation import Evaluation, Measured, Pass, Reference
from services.trainer.core.job import Job, check
from services.trainer.core.selection import Selection
from services.trainer.core.step import Received, start
from services.views import seen
from services.voter.core.ballot import count

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
    """Of the network that it made."""
    model_full_bytes: int
    seconds: dict[str, float]
    """Host time of each stage."""


class Retrained(msgspec.Struct):
    """The network to deploy, how it was chosen, and one record an iteration."""

    network: Network
    iterations: list[Iteration]
    selection: Selection | None = None
    other_model_bytes: int = 0
    """Of the network from before, which the device got whole, and of those that it only tried."""


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
    job = objective.settled(job, network, data, path)
    check(job, network)
    plan = recipe.plan(job, len(data.train_images))
    own = None
    if job.labels == "server":
        own = data.train_labels if data.train_targets is None else data.train_targets
    steps = course(plan, network, start(job, network), path, own, None)
    loop = Loop(job, data, accelerator or build(f"simulated:{path}"), path)
    done = Retrained(network, [])
    reply: Reply = None
    while True:
        try:
            command = steps.send(reply)
        except StopIteration as end:
            done.network, _, done.selection = end.value
            done.other_model_bytes = loop.other_model_bytes
            return done
        if not isinstance(command, Learnt):
            reply = loop.carry(command)
            continue
        reply = None
        done.iterations.append(loop.record(command))
        if watch is not None:
            watch(done.iterations[-1], command.made.network)


class Loop:
    """A device and both ends of its link in one process: carries out the commands of a course."""

    def __init__(self, job: Job, data: Dataset, accelerator: Factory, path: str) -> None:
        self.job = job
        self.data = data
        self.device = Device(job.scheme, job.device, accelerator, path, known_faults(job.known, "job: known"))
        self.link = Link(job.scheme, DeviceEnd(path), ServerEnd(path))
        self.on_device: Network | None = None
        self.crossed: _Crossing | None = None
        self.model_bytes = 0
        self.other_model_bytes = 0
        self.clock = Clock()

    def carry(self, command: Deploy | Batch | Answers) -> Reply:
        """Do as a command says; what came of it."""
        self.clock.skip()
        if isinstance(command, Deploy):
            self.on_device, sent = self.link.deploy(command.version, command.network)
            self.clock.tick("downlink")
            if command.iteration < 0:
                self.other_model_bytes += sent
            else:
                self.model_bytes = sent
            return None
        if self.on_device is None:
            raise ValueError("a pass before any network was deployed")
        images = self.data.train_images[command.samples]
        truth = self.data.train_labels[command.samples] if self.data.kind == "classes" else None
        if isinstance(command, Batch):
            self.device.load(self.on_device, command.rates, self.job.seed)
            self.clock.tick("load")
            self.crossed = self.link.batch(self.device, images, command, self.clock)
            return Received(self.crossed.images, self.crossed.outputs, truth)
        chosen, _ = _photographed(images, self.job.scheme)
        if command.seed is None:
            return Answered(self.device.reliable(self.on_device, chosen), truth)
        self.device.load(self.on_device, self.job.rates, command.seed)
        return Answered(self.device.run(chosen, command.iteration, training=False), truth)

    def record(self, learnt: Learnt) -> Iteration:
        """What an iteration came to, once the network that it made is deployed."""
        assert self.crossed is not None
        self.clock.seconds |= {"backward": learnt.made.backward_s, "quantise": learnt.made.quantise_s}
        found = _record(learnt, self.crossed, self.model_bytes, self.clock)
        self.clock, self.model_bytes = Clock(), 0
        return found


def _record(learnt: Learnt, crossed: _Crossing, model_bytes: int, clock: Clock) -> Iteration:
    made = learnt.made
    return Iteration(
        iteration=learnt.iteration,
        loss=made.loss,
        grad_norm=made.norm,
        correct=made.correct,
        elements=sum(y.size for y in crossed.outputs.values()),
        mismatched=crossed.mismatched,
        repaired=crossed.repaired,
        input_bytes=crossed.input_bytes,
        layer_bytes=crossed.layer_bytes,
        repair_bytes=crossed.repair_bytes,
        model_bytes=model_bytes,
        model_full_bytes=sum(layer.weight.nbytes + layer.bias.nbytes for _, layer in made.network.convs()),
        seconds=clock.seconds,
    )


def evaluate(
    network: Network,
    images: UInt8,
    truth: Int64 | Reference,
    rates: Rates,
    seeds: Sequence[int],
    *,
    scheme: Scheme = CHAINED,
    device: str = "device",
    batch: int = 128,
    path: str = "auto",
    accelerator: Factory | None = None,
) -> Evaluation:
    """What the faulty device comes to on images (N, H, W, C), for each fault seed; one number where there are no faults.

    ``truth``: labels (N,), or what its images are measured against (``reference``).

    The same faults as in the pipeline's evaluation of as many samples in as large batches, with the scheme's camera and
    protected layers.
    """
    running = Device(scheme, device, accelerator or build(f"simulated:{path}"), path)
    seeds = evaluation.seeds_of(rates, seeds)
    found: list[list[Measured]] = [[] for _ in seeds]
    for due, output in _outputs(running, network, images, rates, seeds, batch):
        of = truth.at(due.samples) if isinstance(truth, Reference) else truth[due.samples]
        found[due.run].append(evaluation.measure(output, network.layers[-1].scale, of))
    return evaluation.accuracy(found)


def reference(job: Job, network: Network, data: Dataset, chosen: Int64, path: str = "auto") -> Int64 | Reference:
    """What held-out samples are measured against in a job that is settled: labels, targets, or what the network from before
    retraining gives for them without faults."""
    match job.against:
        case "labels":
            return data.test_labels[chosen]
        case "targets":
            assert data.test_targets is not None
            return evaluation.against_targets(job, network, data.test_targets[chosen])
        case "fault-free outputs":
            images, _ = _photographed(data.test_images[chosen], job.scheme)
            parts = [images[at : at + job.evaluation_batch] for at in range(0, len(images), job.evaluation_batch)]
            engine = shared(network, path)
            outputs = [engine.run(network.quantize_images(part))[-1] for part in parts]
            return evaluation.against_outputs(job, network, np.concatenate(outputs))
        case _:
            assert_never(job.against)


def outputs(
    network: Network,
    images: UInt8,
    rates: Rates,
    seeds: Sequence[int],
    *,
    scheme: Scheme = CHAINED,
    device: str = "device",
    batch: int = 128,
    path: str = "auto",
    accelerator: Factory | None = None,
) -> list[Activation]:
    """What ``evaluate`` measures: the faulty device's outputs (N, H, W, C) for images (N, H, W, C), an array a fault seed."""
    running = Device(scheme, device, accelerator or build(f"simulated:{path}"), path)
    found: list[list[Activation]] = [[] for _ in seeds]
    for due, output in _outputs(running, network, images, rates, seeds, batch):
        found[due.run].append(output)
    return [np.concatenate(parts) for parts in found]


def _outputs(
    running: Device, network: Network, images: UInt8, rates: Rates, seeds: Sequence[int], batch: int
) -> Iterator[tuple[Pass, Activation]]:  # fmt: skip
    """Every pass of an evaluation, with what the device answers."""
    for due in evaluation.passes(np.arange(len(images)), seeds, batch):
        chosen, _ = _photographed(images[due.samples], running.scheme)
        running.load(network, rates, due.seed)
        yield due, running.run(chosen, due.iteration, training=False)


def _photographed(images: UInt8, scheme: Scheme) -> tuple[UInt8, list[bytes]]:
    """The pixels that the device runs on, and the camera's files of them, if it gives such."""
    if not scheme.jpeg:
        return images, []
    files, pixels = photograph(images, scheme.jpeg)
    return pixels, files


class Device:
    """What a device holds between passes."""

    def __init__(self, scheme: Scheme, name: str, factory: Factory, path: str, known: FaultMap | None = None) -> None:
        self.scheme = scheme
        self.name = name
        self.factory = factory
        self.path = path
        self.known = known
        """Permanent faults that the server predicts with, and so the referee refers to."""
        self.loaded: tuple[Network, Rates, int] | None = None
        self.shares: dict[int, float] | None = None

    def load(self, network: Network, rates: Rates, seed: int) -> None:
        """Make a network the one that runs, under these faults."""
        if self.loaded is not None and self.loaded[0] is network and self.loaded[1:] == (rates, seed):
            return
        check_scheme(self.scheme, network)
        self.network, self.seed = network, seed
        self.engine = exact(network, self.path, self.known)
        self.accelerator = self.factory(rates, seed, self.name)
        self.accelerator.load(network)
        vote_at(self.accelerator, ports_of(self.scheme))
        self.loaded = (network, rates, seed)

    def reliable(self, network: Network, images: UInt8) -> Activation:
        """The outputs of the general-purpose processor, which makes no errors, on images (N, H, W, C)."""
        return shared(network, self.path).run(network.quantize_images(images))[-1]

    def under_threshold(self) -> frozenset[int]:
        """The layers whose outputs go as they are, measured at the first call; none where the scheme has no threshold."""
        if not thresholded(self.scheme):
            return frozenset()
        if self.shares is None:
            plan = plan_of(self.scheme, training=True)
            steps = similarity(self.network, self.engine, self.accelerator, plan, self.seed)
            self.shares = self._drive(steps, None, Clock())
        return frozenset(i for i, share in self.shares.items() if share < self.scheme.theta)

    def run(
        self,
        images: UInt8,
        iteration: int,
        *,
        training: bool,
        direct: frozenset[int] = frozenset(),
        each: Callable[[Sequence[_Voted]], None] | None = None,
        clock: Clock | None = None,
    ) -> Activation:
        """One pass on images (N, H, W, C) to the network's outputs; ``each`` gets the layers of every segment, voted."""
        given = self.network, self.engine, self.accelerator, self.network.quantize_images(images), iteration
        plan = plan_of(self.scheme, training=True, direct=direct) if training else None
        steps = answer(*given, self.scheme) if plan is None else execute(*given, plan)
        return self._drive(steps, each, clock or Clock())

    def _drive(
        self,
        steps: Generator[Segment, Votes | None, T],
        each: Callable[[Sequence[_Voted]], None] | None,
        clock: Clock,
    ) -> T:
        votes: Votes | None = None
        while True:
            segment = advance(steps, votes)
            clock.tick("forward")
            if isinstance(segment, Done):
                return segment.value
            voted = [_voted(executed, self.scheme) for executed in segment.layers]
            votes = {layer.index: layer.goes_on for layer in voted}
            clock.tick("tmr")
            if each is not None:
                each(voted)
            segment.done()


@dataclass(frozen=True, slots=True)
class _Voted:
    """A layer as the voter passes it on."""

    index: int
    actual: Activation
    vote: Activation | None
    """None where the outputs go as they are."""
    goes_on: Activation
    """What a pass that waited for the vote goes on with."""


def _voted(executed: Executed, scheme: Scheme) -> _Voted:
    positions, values = executed.refereed
    ballot = count(executed.replicas, scheme.vote, protected=executed.protected, positions=positions, values=values)
    actual = executed.replicas[0] if ballot.protected is None else ballot.protected
    goes_on = actual
    if executed.actual is not None:
        if ballot.vote is None:
            raise RuntimeError(f"layer {executed.index} ran beside a TMR pass that has no vote")
        actual, goes_on = executed.actual, ballot.vote
    return _Voted(executed.index, actual, None if executed.as_it_is else ballot.vote, goes_on)


class Link:
    """Both ends of the link."""

    def __init__(self, scheme: Scheme, device: DeviceEnd, server: ServerEnd) -> None:
        self.scheme = scheme
        self.device = device
        self.server = server

    def deploy(self, version: int, network: Network) -> tuple[Network, int]:
        """A network to the device: as it is there, and the bytes of what was sent."""
        self.server.deploy(version, -1, network)
        sent = self.server.model()
        self.device.model(sent)
        if self.device.network is None:
            raise RuntimeError("the device's end took a network and has none")
        return self.device.network, len(sent.body)

    def batch(self, device: Device, images: UInt8, of: Batch, clock: Clock) -> _Crossing:
        """A pass of the device on images (N, H, W, C), and all of it over the link."""
        images, files = _photographed(images, self.scheme)
        sent = self.device.begin(self.scheme, of.iteration, 0, images, files, of.view, device.known)
        clock.tick("compress")
        rebuild = self.server.begin(self.server.newest, self.scheme, device.known)
        received = seen(self.server.images(sent, rebuild.network), of.view)
        self.device.forget(self.server.forgotten())
        rebuild.start(received)
        clock.tick("decompress")
        crossed = _Crossing(self.device, rebuild, received, len(sent.fresh), clock)
        direct = device.under_threshold()
        clock.tick("forward")
        device.run(received, of.iteration, training=True, direct=direct, each=crossed.up, clock=clock)
        return crossed


@dataclass(slots=True)
class _Crossing:
    """A pass on its way over the link. Bytes are of bodies."""

    device: DeviceEnd
    rebuild: Rebuild
    images: UInt8
    """As the server has them."""
    input_bytes: int
    clock: Clock
    outputs: dict[int, Activation] = field(default_factory=dict)
    """What the server rebuilt, by MAC layer."""
    layer_bytes: int = 0
    repair_bytes: int = 0
    mismatched: int = 0
    repaired: int = 0
    segments: int = 0

    def up(self, voted: Sequence[_Voted]) -> None:
        """The layers of a segment, to the server and mended there."""
        sent = [self.device.layer(layer.index, layer.actual, layer.vote) for layer in voted]
        self.layer_bytes += sum(len(layer.body) for layer in sent)
        self.clock.tick("compress")
        self.rebuild.take(self.segments, sent)
        self.segments += 1
        actual = {layer.index: layer.actual for layer in voted}
        while (found := self.rebuild.next()) is not None:
            if isinstance(found, Wrong):
                corrections = self.device.correct(found.index, found.digests)
                self.repair_bytes += sum(map(len, corrections.values()))
                self.clock.tick("compress")
                self.rebuild.mend(corrections)
                continue
            self.outputs[found.index] = found.actual
            self.repaired += found.repaired
            if not found.faithful:
                self.mismatched += int(np.count_nonzero(found.actual != actual[found.index]))
        self.clock.tick("decompress")


class Clock:
    """Host time since the last tick, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def skip(self) -> None:
        """Leave out the time since the last tick."""
        self._last = time.perf_counter()

    def tick(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
