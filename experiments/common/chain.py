"""One batch through both ends of the link in one process: what is sent, what it costs, what the server ends up with.

The services' cores do it all; here they are called step by step, so that each step is timed and every codec has the same
faults. Experiments and benchmarks need no broker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.int8.network import Activation, Int8
from broker.link import Profile, message_bytes
from services.bus import encoding
from services.bus.messages import EncodedLayer, EncodedLayers, EncodedRepair, Repair
from services.codec.core import entropy, layers, repair
from services.codec.core.kept import Kept
from services.codec.core.rebuild import Rebuild, Rebuilt, Wrong
from services.codec.core.sent import SentLayer
from services.edge_agent.core import referee
from services.edge_agent.core.forward import Done, Executed, Votes, advance, execute
from services.edge_agent.core.plan import Plan
from services.scheme import SEGMENT_BYTES, Codec, Redundancy, Scheme, Vote
from services.voter.core.ballot import TMR, count

_SESSION: Final = "0123456789abcdef"


@dataclass(slots=True)
class Sent:
    """One MAC layer of one batch on the link."""

    index: int
    raw: int
    """Bytes of its int8 outputs."""
    body: bytes
    digest: int
    bound: float = 0.0
    """Bytes of the design's entropy bound on what was sent; the raw bytes where that was no increment."""
    executions: int = 1
    refereed: int = 0
    """Multiply-accumulates of the referee."""
    referee_s: float = 0.0
    """Its modelled time."""
    mismatched: int = 0
    """Elements of the server's tensor that are not the device's."""
    encode_s: float = 0.0
    decode_s: float = 0.0
    rebuild_s: float = 0.0
    """Of the server: what predicts this layer, layers without multiplications before it included, over its threads."""


@dataclass(slots=True)
class Batch:
    """A batch on the link: its layers in order, and what repairs took."""

    images: int
    layers: list[Sent] = field(default_factory=list)
    round_trips: int = 0
    requests: list[int] = field(default_factory=list)
    """Payload lengths of the ``down/repair`` messages."""
    answers: list[int] = field(default_factory=list)
    """And of the ``up/repair`` ones."""
    repair_macs: int = 0
    repair_s: float = 0.0
    """Of the server, to predict a repaired layer again, over its threads."""
    outputs: dict[int, Activation] = field(default_factory=dict)
    """Of the chained codec: what the server rebuilt, by MAC layer."""

    @property
    def raw(self) -> int:
        """Bytes of all intermediate outputs."""
        return sum(sent.raw for sent in self.layers)

    @property
    def bodies(self) -> int:
        """Bytes of the layers' bodies alone."""
        return sum(len(sent.body) for sent in self.layers)

    @property
    def mismatched_share(self) -> float:
        """Share (0 to 1) of elements that the server has wrong."""
        return sum(sent.mismatched for sent in self.layers) / self.raw

    @property
    def wire(self) -> int:
        """``up`` where no link makes the chunks smaller."""
        return self.up()

    @property
    def repair_up(self) -> int:
        """Bytes of the repairs in ``up``."""
        return sum(message_bytes("up/repair", length) for length in self.answers)

    @property
    def repair_down(self) -> int:
        """``down`` where no link makes the chunks smaller."""
        return self.down()

    def up(self, link: Profile | None = None) -> int:
        """Bytes on the wire upwards: bodies, digests, messages, MQTT and TCP framing, and repairs."""
        return sum(self.segments_up(link)) + sum(message_bytes("up/repair", length, link) for length in self.answers)

    def down(self, link: Profile | None = None) -> int:
        """Bytes on the wire downwards, which repairs take."""
        return sum(message_bytes("down/repair", length, link) for length in self.requests)

    def segments_up(self, link: Profile | None = None) -> list[int]:
        """Bytes on the wire of each of ``segments``."""
        return [message_bytes("up/layers", len(encoding.encode(message)), link) for message in self.messages()]

    def segments(self) -> Iterator[list[Sent]]:
        """The layers as the edge agent gathers them for one message."""
        segment: list[Sent] = []
        for sent in self.layers:
            segment.append(sent)
            if sum(gathered.raw for gathered in segment) >= SEGMENT_BYTES:
                yield segment
                segment = []
        if segment:
            yield segment

    def messages(self) -> Iterator[EncodedLayers]:
        """The ``up/layers`` messages, as really sent but for the Bus's stamp."""
        for number, segment in enumerate(self.segments()):
            yield self._message(number, [EncodedLayer(sent.index, sent.digest, sent.body) for sent in segment])

    def _message(self, number: int, segment: list[EncodedLayer]) -> EncodedLayers:
        return EncodedLayers(
            session=_SESSION,
            iteration=1000,
            attempt=0,
            sent_at=1.7e9,
            segment=number,
            batch=self.images,
            layers=tuple(segment),
        )


def direct(accelerator: Simulated, x: Activation, iteration: int, *, compressed: bool = False) -> Batch:
    """The paper's DRM: the outputs as they are; ``compressed`` is zstd on them."""
    batch = Batch(images=len(x))
    for executed, _ in _pass(accelerator, x, iteration, Plan(replicas=1), "median"):
        actual = executed.replicas[0]
        sent = _encode(executed, actual, None, "chained" if compressed else "direct")
        start = time.thread_time()
        rebuilt = layers.decode(sent.body, None, actual.shape, actual.dtype)
        sent.decode_s = time.thread_time() - start
        sent.mismatched = int(np.count_nonzero(rebuilt != actual))
        sent.bound = float(sent.raw)
        batch.layers.append(sent)
    return batch


def chained(
    accelerator: Simulated,
    server: Engine,
    x: Activation,
    iteration: int,
    *,
    kind: Vote = "median",
    settle: bool = True,
    exact: bool = False,
    longest: int = referee.SHORT,
) -> Batch:
    """Chained increments (architecture.md, "The link"), with the server's own recomputation from what it rebuilt.

    ``settle`` False is plain voting over three replicas, ``longest`` is ``referee.short`` of the link. ``exact``
    repairs (``services.codec.core.repair``), once everything else has been sent.
    """
    network, device = server.network, accelerator.engine
    plan = Plan(replicas=TMR, referee=settle, longest=longest)
    kept = Kept(network, device.path, iteration, x)
    actual: dict[int, Activation] = {}
    batch = Batch(images=len(x))
    for executed, vote in _pass(accelerator, x, iteration, plan, kind):
        index, macs = executed.index, device.conv(executed.index).weight[0].size
        actual[index] = executed.replicas[0]
        sent = _encode(executed, actual[index], vote, "chained")
        if executed.settled is not None:
            sent.refereed = len(executed.settled.values) * macs
            sent.referee_s = referee.seconds(executed.settled, macs)
        sent.bound = float(len(sent.body))
        if vote is not None and layers.needs_prediction(sent.body):
            sent.bound = min(entropy.bound(np.subtract(actual[index], vote)), sent.raw)
        if exact:
            kept.keep(index, actual[index], sent.body)
        batch.layers.append(sent)
    rebuild = Rebuild(network, server, Scheme(codec="chained", exact=exact))
    rebuild.feed(x)
    for wrong in _rebuild(batch, rebuild, actual):
        corrections = kept.correct(wrong.index, wrong.digests)
        _count_repair(batch, wrong, corrections, actual, device)
        rebuild.mend(corrections)
    return batch


def golden(
    accelerator: Simulated,
    server: Engine,
    x: Activation,
    iteration: int,
    *,
    direct_layers: frozenset[int],
    redundancy: Redundancy,
) -> Batch:
    """The paper's APRM: increments against the votes of a TMR run from the same input, by LZ4 (section V.A and V.C).

    ``direct_layers`` are those under the similarity threshold. The votes are bitwise, as in the paper.
    """
    plan = Plan(replicas=TMR, beside=redundancy, direct=direct_layers)
    actual: dict[int, Activation] = {}
    batch = Batch(images=len(x))
    for executed, vote in _pass(accelerator, x, iteration, plan, "bitwise"):
        actual[executed.index] = _actual(executed)
        sent = _encode(executed, _actual(executed), vote, "golden")
        sent.bound = float(len(sent.body))
        batch.layers.append(sent)
    rebuild = Rebuild(server.network, server, Scheme(codec="golden", redundancy=redundancy))
    rebuild.feed(x)
    for wrong in _rebuild(batch, rebuild, actual):
        raise RuntimeError(f"golden: layer {wrong.index} asks for a repair")
    batch.outputs.clear()
    return batch


def similarity(accelerator: Simulated, server: Engine, x: Int8, redundancy: Redundancy) -> dict[int, float]:
    """The paper's offline measure, a MAC layer: share (0 to 1) of outputs that the server would have right.

    ``x`` is one input. The approximate outputs are ``fault-free + (actual - vote)``, so they are right where the vote is
    fault-free (section VI.B).
    """
    fault_free = server.run(x)
    shares: dict[int, float] = {}
    for executed, vote in _pass(accelerator, x, 0, Plan(replicas=TMR, beside=redundancy), "bitwise"):
        if vote is None:
            raise RuntimeError(f"similarity: layer {executed.index} has no vote")
        shares[executed.index] = float(np.mean(vote == fault_free[executed.index]))
    return shares


def dissimilar(shares: dict[int, float], threshold: float) -> frozenset[int]:
    """Layers under the threshold, which go direct."""
    return frozenset(index for index, share in shares.items() if share < threshold)


def _pass(
    accelerator: Simulated, x: Activation, iteration: int, plan: Plan, kind: Vote
) -> Iterator[tuple[Executed, Activation | None]]:
    """Each MAC layer of the device's pass on ``x``, and the vote that its increments are against, None where there is none."""
    engine = accelerator.engine
    steps = execute(engine.network, engine, accelerator, x, iteration, plan)
    votes: Votes | None = None
    while not isinstance(segment := advance(steps, votes), Done):
        votes = {}
        for executed in segment.layers:
            positions, values = executed.refereed
            vote = count(executed.replicas, kind, positions=positions, values=values).vote
            if vote is not None:
                votes[executed.index] = vote
            yield executed, None if executed.as_it_is else vote
        segment.done()


def _actual(executed: Executed) -> Activation:
    return executed.replicas[0] if executed.actual is None else executed.actual


def _encode(executed: Executed, actual: Activation, reference: Activation | None, codec: Codec) -> Sent:
    start = time.thread_time()
    body = layers.encode(actual, reference, codec)
    digest = layers.digest(actual)
    seconds = time.thread_time() - start
    return Sent(executed.index, actual.nbytes, body, digest, encode_s=seconds, executions=executed.executions)


def _rebuild(batch: Batch, rebuild: Rebuild, actual: Mapping[int, Activation]) -> Iterator[Wrong]:
    """What the server makes of a batch, into its layers and ``outputs``; yields what it has to ask for on the way."""
    rebuild.take(0, [SentLayer(sent.index, sent.digest, sent.body) for sent in batch.layers])
    for sent in batch.layers:
        sent.rebuild_s, sent.decode_s, found = _step(rebuild)
        while isinstance(found, Wrong):
            yield found
            seconds, _, found = _step(rebuild)
            batch.repair_s += seconds
        sent.mismatched = int(np.count_nonzero(found.actual != actual[sent.index]))
        batch.outputs[sent.index] = found.actual


def _step(rebuild: Rebuild) -> tuple[float, float, Rebuilt | Wrong]:
    """Seconds that prediction and decoding of the next layer take, and what it came to."""
    if not rebuild.ready():
        raise RuntimeError("the server waits for what was not sent")
    start = time.process_time()
    prediction = rebuild.predict()
    predicting = (time.process_time() - start) / rebuild.engine.threads
    start = time.thread_time()
    decoded = rebuild.decode(prediction)
    return predicting, time.thread_time() - start, rebuild.check(prediction, decoded)


def _count_repair(
    batch: Batch, wrong: Wrong, corrections: Mapping[int, bytes], actual: Mapping[int, Activation], device: Engine
) -> None:
    """The request's and the answer's bytes, and the device's multiplications for them."""
    request = Repair(session=_SESSION, iteration=1000, attempt=0, layer=wrong.index, digests=wrong.digests)
    answer = EncodedRepair(
        session=_SESSION,
        iteration=1000,
        attempt=0,
        sent_at=1.7e9,
        layer=wrong.index,
        layers=tuple(EncodedLayer(index, 0, body) for index, body in corrections.items()),
    )
    batch.round_trips += 1
    batch.requests.append(len(encoding.encode(request)))
    batch.answers.append(len(encoding.encode(answer)))
    for index in corrections:
        channels = actual[index].shape[-1]
        computed = channels
        if wrong.digests is not None:
            theirs = np.frombuffer(wrong.digests, "<u4")
            computed = int(np.count_nonzero(repair.channel_digests(actual[index]) != theirs))
        batch.repair_macs += actual[index].size // channels * computed * device.conv(index).weight[0].size
