"""One batch through both ends of the link in one process: what is sent, what it costs, what the server ends up with.

The services do the same over the bus; experiments and benchmarks need every codec on the same faults, without a broker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Conv, Int8
from broker.link import Profile, message_bytes
from services.bus import encoding
from services.bus.messages import EncodedLayer, EncodedLayers, EncodedRepair, Repair
from services.codec.core import entropy, layers, repair
from services.edge_agent.core import referee
from services.scheme import SEGMENT_BYTES, Redundancy, Vote
from services.voter.core.vote import settled_vote, vote

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
    """Of the server: fault-free outputs of this layer, and of those without multiplications before it, over its threads."""


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
    """Of the server, to compute again what follows on a repaired layer, over its threads."""
    outputs: dict[int, Int8] = field(default_factory=dict)
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


def direct(accelerator: Simulated, x: Int8, iteration: int, *, compressed: bool = False) -> Batch:
    """The paper's DRM: the outputs as they are; ``compressed`` is zstd on them."""
    batch = Batch(images=len(x))
    for index, _, actual in _actual(accelerator, x, iteration):
        sent = _encode(index, actual, None, compressed)
        rebuilt = _decode(sent, None, actual.shape)
        sent.mismatched = int(np.count_nonzero(rebuilt != actual))
        sent.bound = float(sent.raw)
        batch.layers.append(sent)
    return batch


def chained(
    accelerator: Simulated,
    server: Engine,
    x: Int8,
    iteration: int,
    *,
    kind: Vote = "median",
    settle: bool = True,
    exact: bool = False,
    longest: int = referee.SHORT,
) -> Batch:
    """Chained increments (architecture.md, "The link"), with the server's own recomputation from what it rebuilt.

    ``settle`` False is plain voting over three replicas, ``longest`` is ``referee.short`` of the link. ``exact``
    repairs (``services.codec.core.repair``).
    """
    network, device = server.network, accelerator.engine
    actual: dict[int, Int8] = {INPUT: x}
    rebuilt: dict[int, Int8] = {INPUT: x}
    votes: dict[int, Int8 | None] = {}
    batch = Batch(images=len(x))
    waited = 0.0
    for index, layer in enumerate(network.layers):
        operands = [actual[i] for i in layer.inputs]
        given = [rebuilt[i] for i in layer.inputs]
        if not isinstance(layer, Conv):
            actual[index] = device.fault_free(index, operands)
        start = time.process_time()
        rebuilt[index] = server.fault_free(index, given)
        waited += (time.process_time() - start) / server.threads
        if not isinstance(layer, Conv):
            continue
        voted, settled = _settle(accelerator, index, operands[0], iteration, kind, longest if settle else None)
        actual[index], votes[index] = settled.replicas[0], voted
        sent = _encode(index, actual[index], voted, True)
        sent.executions = settled.executions
        sent.refereed = len(settled.values) * layer.weight[0].size
        sent.referee_s = referee.seconds(settled, layer.weight[0].size)
        if not layers.needs_prediction(sent.body):
            votes[index] = None  # sent themselves in the end: nothing can be wrong with them
        if voted is not None and votes[index] is not None:
            sent.bound = min(entropy.bound(np.subtract(actual[index], voted)), sent.raw)
        else:
            sent.bound = float(len(sent.body))
        sent.rebuild_s, waited = waited, 0.0
        rebuilt[index] = _decode(sent, rebuilt[index], actual[index].shape)
        batch.layers.append(sent)
    if exact:
        _repair(batch, device, server, actual, rebuilt, votes)
    for sent in batch.layers:
        sent.mismatched = int(np.count_nonzero(rebuilt[sent.index] != actual[sent.index]))
        batch.outputs[sent.index] = rebuilt[sent.index]
    return batch


def golden(
    accelerator: Simulated, server: Engine, x: Int8, iteration: int, *, direct_layers: frozenset[int], redundancy: Redundancy
) -> Batch:
    """The paper's APRM: increments against the votes of a TMR run from the same input, by LZ4 (section V.A and V.C).

    ``direct_layers`` are those under the similarity threshold. The votes are bitwise, as in the paper.
    """
    fault_free, seconds = _fault_free(server, x)
    references = tmr_votes(accelerator, x, iteration, redundancy)
    batch = Batch(images=len(x))
    for index, _, actual in _actual(accelerator, x, iteration):
        reference = None if index in direct_layers else references[index]
        start = time.thread_time()
        body = layers.encode(actual, reference, "golden")
        sent = Sent(index, actual.nbytes, body, layers.digest(actual), encode_s=time.thread_time() - start, executions=4)
        sent.rebuild_s = seconds[index]
        rebuilt = _decode(sent, fault_free[index], actual.shape)
        sent.mismatched = int(np.count_nonzero(rebuilt != actual))
        sent.bound = float(len(body))
        batch.layers.append(sent)
    return batch


def _fault_free(server: Engine, x: Int8) -> tuple[dict[int, Int8], dict[int, float]]:
    """Outputs of every layer, and ``Sent.rebuild_s`` of every MAC layer."""
    outputs: dict[int, Int8] = {INPUT: x}
    seconds: dict[int, float] = {}
    waited = 0.0
    for index, layer in enumerate(server.network.layers):
        start = time.process_time()
        outputs[index] = server.fault_free(index, [outputs[i] for i in layer.inputs])
        waited += (time.process_time() - start) / server.threads
        if isinstance(layer, Conv):
            seconds[index], waited = waited, 0.0
    return outputs, seconds


def tmr_votes(accelerator: Simulated, x: Int8, iteration: int, redundancy: Redundancy) -> dict[int, Int8]:
    """Bitwise votes of every MAC layer over a TMR run that is apart from the actual one (replicas 1 to 3).

    Layer-wise the vote feeds the next layer; network-wise each of three runs goes on with its own outputs (section V.C).
    """
    network, engine = accelerator.engine.network, accelerator.engine
    runs: list[dict[int, Int8]] = [{INPUT: x} for _ in range(1 if redundancy == "layer" else 3)]
    votes: dict[int, Int8] = {}
    for index, layer in enumerate(network.layers):
        if not isinstance(layer, Conv):
            for run in runs:
                run[index] = engine.fault_free(index, [run[i] for i in layer.inputs])
            continue
        operand = layer.inputs[0]
        if redundancy == "layer":
            replicas = accelerator.run_replicas(index, runs[0][operand], iteration=iteration, count=3, first=1)
            votes[index] = runs[0][index] = vote(replicas, "bitwise")
        else:
            for replica, run in enumerate(runs, start=1):
                run[index] = accelerator.run_layer(index, run[operand], iteration=iteration, replica=replica)
            votes[index] = vote([run[index] for run in runs], "bitwise")
    return votes


def similarity(accelerator: Simulated, server: Engine, x: Int8, redundancy: Redundancy) -> dict[int, float]:
    """The paper's offline measure, a MAC layer: share (0 to 1) of outputs that the server would have right.

    ``x`` is one input. The approximate outputs are ``fault-free + (actual - vote)``, so they are right where the vote is
    fault-free (section VI.B).
    """
    fault_free = server.run(x)
    return {index: float(np.mean(v == fault_free[index])) for index, v in tmr_votes(accelerator, x, 0, redundancy).items()}


def dissimilar(shares: dict[int, float], threshold: float) -> frozenset[int]:
    """Layers under the threshold, which go direct."""
    return frozenset(index for index, share in shares.items() if share < threshold)


def _actual(accelerator: Simulated, x: Int8, iteration: int) -> Iterator[tuple[int, Conv, Int8]]:
    """(index, layer, actual output) of each MAC layer of the device's faulty run."""
    engine = accelerator.engine
    outputs: dict[int, Int8] = {INPUT: x}
    for index, layer in enumerate(engine.network.layers):
        operands = [outputs[i] for i in layer.inputs]
        if isinstance(layer, Conv):
            outputs[index] = accelerator.run_layer(index, operands[0], iteration=iteration)
            yield index, layer, outputs[index]
        else:
            outputs[index] = engine.fault_free(index, operands)


def _settle(
    accelerator: Simulated, index: int, x: Int8, iteration: int, kind: Vote, longest: int | None
) -> tuple[Int8 | None, referee.Settled]:
    def execute(first: int, count: int) -> list[Int8]:
        return accelerator.run_replicas(index, x, iteration=iteration, count=count, first=first)

    if longest is None:
        replicas = tuple(execute(0, 3))
        none = np.empty(0, np.int64)
        settled = referee.Settled(replicas=replicas, positions=none, values=np.empty(0, np.int8), direct=False, executions=3)
        return vote(replicas, kind), settled
    engine = accelerator.engine
    settled = referee.settle(
        execute,
        lambda positions: engine.elements(index, x, positions),
        lambda: engine.fault_free(index, [x]),
        engine.conv(index).weight[0].size,
        longest,
    )
    if settled.direct:
        return None, settled
    return settled_vote(settled.replicas, kind, settled.positions, settled.values), settled


def _encode(index: int, actual: Int8, voted: Int8 | None, compressed: bool) -> Sent:
    start = time.thread_time()
    body = layers.encode(actual, voted, "chained" if compressed else "direct")
    digest = layers.digest(actual)
    return Sent(index, actual.nbytes, body, digest, encode_s=time.thread_time() - start)


def _decode(sent: Sent, prediction: Int8 | None, shape: tuple[int, ...]) -> Int8:
    start = time.thread_time()
    rebuilt = layers.decode(sent.body, prediction, shape)
    sent.decode_s = time.thread_time() - start
    return rebuilt


def _repair(
    batch: Batch,
    device: Engine,
    server: Engine,
    actual: dict[int, Int8],
    rebuilt: dict[int, Int8],
    votes: dict[int, Int8 | None],
) -> None:
    """Request and answer until every digest fits; raises RuntimeError if two round trips were not enough."""
    bodies = {sent.index: sent for sent in batch.layers}
    wrong = _first_wrong(bodies, rebuilt)
    while wrong is not None:
        if batch.round_trips == 2:
            raise RuntimeError(f"layer {wrong} still differs after two round trips")
        whole = batch.round_trips == 1
        digests = None if whole else repair.channel_digests(rebuilt[wrong]).astype("<u4").tobytes()
        request = encoding.encode(Repair(session=_SESSION, iteration=1000, attempt=0, layer=wrong, digests=digests))
        fixes: dict[int, bytes] = {}
        for index in (i for i in bodies if i >= wrong and (whole or i == wrong)):
            voted = votes[index]
            if voted is None:
                continue
            operand = actual[server.network.layers[index].inputs[0]]
            fixes[index] = repair.correction(device, index, operand, actual[index], voted, digests)
            channels = actual[index].shape[-1]
            differ = (
                channels
                if whole
                else np.count_nonzero(repair.channel_digests(actual[index]) != repair.channel_digests(rebuilt[index]))
            )
            batch.repair_macs += actual[index].size // channels * int(differ) * device.conv(index).weight[0].size
        answer = EncodedRepair(
            session=_SESSION,
            iteration=1000,
            attempt=0,
            sent_at=1.7e9,
            layer=wrong,
            layers=tuple(EncodedLayer(i, bodies[i].digest, body) for i, body in fixes.items()),
        )
        batch.requests.append(len(request))
        batch.answers.append(len(encoding.encode(answer)))
        batch.round_trips += 1
        for index, layer in enumerate(server.network.layers):
            if index < wrong:
                continue
            start = time.process_time()
            prediction = server.fault_free(index, [rebuilt[i] for i in layer.inputs])
            batch.repair_s += (time.process_time() - start) / server.threads
            if isinstance(layer, Conv):
                prediction = layers.decode(bodies[index].body, prediction, prediction.shape)
                if index in fixes:
                    prediction = repair.apply(fixes[index], prediction)
            rebuilt[index] = prediction
        wrong = _first_wrong(bodies, rebuilt)


def _first_wrong(bodies: dict[int, Sent], rebuilt: dict[int, Int8]) -> int | None:
    return next((i for i, sent in bodies.items() if layers.digest(rebuilt[i]) != sent.digest), None)
