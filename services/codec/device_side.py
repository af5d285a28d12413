"""The device's end of the link: compresses what goes up, rebuilds the network that comes down."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

import numpy as np
import structlog

from accelsim.int8 import storage
from accelsim.int8.network import Network
from services.bus import Bus
from services.bus.messages import (
    Ack,
    Command,
    Deploy,
    EncodedInputs,
    EncodedLayer,
    EncodedLayers,
    EncodedModel,
    EncodedRepair,
    Inputs,
    LayerVoted,
    Message,
    Rebuilt,
    Repair,
    SetMode,
    Stage,
    State,
    Tensor,
    Timing,
    Voted,
)
from services.codec.core import inputs, layers, model
from services.codec.core.kept import Kept
from services.scheme import SEGMENT_BYTES, Codec

log = structlog.get_logger()

INPUTS, MODEL, REPAIR = -1, -2, -3
"""Segments of timing events that are no layers'; repairs are told apart by their layer, from REPAIR downwards."""


class DeviceCodec:
    """``up/*`` from ``edge/*``, and ``edge/model`` from ``down/model``. ``serve`` is its whole life.

    ``keep_bytes`` bounds what is kept of an iteration for repairs, but for one message that is always taken.
    """

    def __init__(self, bus: Bus, path: str, keep_bytes: int) -> None:
        self.bus = bus
        self.path = path
        self.keep_bytes = keep_bytes
        self.codec: Codec = "chained"
        self.version = 0
        self.network: Network | None = None
        self.session = ""
        self.known: set[bytes] = set()
        """Hashes of the samples that the server's end, since it last started, has been sent."""
        self.boots: dict[str, str] = {}
        self.exact = False
        self.float_inputs = False
        self.kept: Kept | None = None
        """The running iteration, for repairs."""
        self.asked = -1
        """The layer up to which the server was asked last to confirm what it has, where it has not answered yet."""
        self.waiting: deque[Voted] = deque()
        """What there is no room to keep before it has; its tensors stay where they are, so the agent slows down."""

    async def serve(self) -> None:
        """Answer messages until cancelled."""
        await self.bus.subscribe("down/mode", "down/model", "down/repair", "down/rebuilt", "edge/inputs", "edge/voted")
        await self.bus.subscribe("state/codec-server", "state/agent")
        async for topic, message in self.bus:
            try:
                await self._take(message)
            except ValueError as error:
                # Hostile, damaged, or a tensor that was taken back: the iteration is repeated by the trainer.
                self.bus.reject(topic, str(error))

    async def _take(self, message: Message) -> None:
        match message:
            case SetMode():
                self.codec = message.scheme.codec
                self.float_inputs = message.scheme.float_inputs
                self.exact = message.scheme.exact and self.codec == "chained"
            case Repair():
                await self._repair(message)
            case Rebuilt():
                await self._rebuilt(message)
            case EncodedModel():
                await self._model(message)
            case Inputs():
                await self._inputs(message)
            case Voted(mode="training"):
                self._check(message)
                if self.waiting or not self._fits(message):
                    self.waiting.append(message)
                else:
                    await self._layers(message)
            case State():
                await self._state(message)

    async def _state(self, state: State) -> None:
        """A server that started anew knows no samples; an agent that did has no network."""
        if not state.online or self.boots.get(state.service) == state.boot:
            return
        self.boots[state.service] = state.boot
        if state.service == "codec-server":
            self.known.clear()
        elif self.network is not None and state.version != self.version:
            await self._deploy(self.network)

    async def _model(self, message: EncodedModel) -> None:
        if self.network is not None and message.version == self.version and model.digest(self.network) == message.digest:
            await self._deploy(self.network)  # a repeat: the agent may be the one that lacks it
            return
        if message.base not in (0, self.version):
            error = f"model {message.version} builds on {message.base}, here is {self.version}"
            log.warning("model refused", error=error)
            await self._refuse(message, "base", error)
            return
        try:
            base = self.network if message.base else None
            network = await asyncio.to_thread(model.decode, base, message.body)
            if model.digest(network) != message.digest:
                raise ValueError(f"model {message.version} does not have the digest sent with it")
        except ValueError as error:
            log.error("model refused", version=message.version, error=str(error))
            await self._refuse(message, "model", str(error))
            return
        self.network, self.version, self.session = network, message.version, message.session
        self._forget()  # the iteration that this came from is over
        await self._deploy(network)
        if message.iteration >= 0:
            await self._time(message, MODEL, "downlink", max(0.0, time.time() - message.sent_at))

    async def _refuse(self, message: EncodedModel, of: Command, error: str) -> None:
        ack = Ack(session=message.session, of=of, seq=message.version, ok=False, version=self.version, error=error)
        await self.bus.publish("up/ack", ack)

    async def _deploy(self, network: Network) -> None:
        data = self.bus.share(np.frombuffer(storage.to_bytes(network), np.uint8))
        await self.bus.publish("edge/model", Deploy(session=self.session, iteration=-1, version=self.version, network=data))

    async def _inputs(self, message: Inputs) -> None:
        start = time.perf_counter()
        if len(message.images.shape) != 4:
            raise ValueError(f"images of shape {message.images.shape}, expected (N, H, W, C)")
        images = self.bus.open(message.images)
        self._forget()
        if self.exact and self.network is not None:
            self.kept = Kept(self.network, self.path, message.iteration, message.attempt, images)
        hashes = tuple(inputs.sample_hash(image) for image in images)
        # A repeat is sent whole: what the first attempt sent may be what got lost.
        known = self.known if message.attempt == 0 and not self.float_inputs else set()
        fresh = [i for i, name in enumerate(hashes) if name not in known]
        if message.files and len(message.files) != len(images):
            raise ValueError(f"{len(message.files)} files for {len(images)} images")
        if self.float_inputs:
            body = inputs.floats(images[fresh])
        else:
            body = inputs.pack([message.files[i] for i in fresh]) if message.files else inputs.encode(images[fresh])
        shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        self.bus.release(message.images)
        encoded = EncodedInputs(
            session=message.session,
            iteration=message.iteration,
            attempt=message.attempt,
            sent_at=time.time(),
            hashes=hashes,
            labels=message.labels,
            shape=shape,
            fresh=body,
            fresh_of=tuple(fresh),
        )
        sent = await self.bus.publish("up/inputs", encoded)
        self.known.update(hashes)
        await self._time(message, INPUTS, "compress", time.perf_counter() - start, sent)

    def _forget(self) -> None:
        """What was of an earlier iteration or attempt; its tensors go back to their senders."""
        self.kept, self.asked = None, -1
        for message in self.waiting:
            for tensor in (t for layer in message.layers for t in _tensors(layer)):
                self.bus.release(tensor)
        self.waiting.clear()

    def _keeping(self, message: Voted | Repair | Rebuilt) -> Kept | None:
        """What is kept of just the pass that a message is of."""
        kept = self.kept
        if kept is None or (kept.iteration, kept.attempt) != (message.iteration, message.attempt):
            return None
        return kept

    def _check(self, message: Voted) -> None:
        """Raises ValueError for what is no part of a pass."""
        for layer in message.layers:
            unknown = self.network is not None and not 0 <= layer.index < len(self.network.layers)
            if unknown or len(layer.actual.shape) != 4:
                raise ValueError(f"outputs of shape {layer.actual.shape} for layer {layer.index}")
        if not message.layers:
            raise ValueError(f"segment {message.segment} has no layers")

    def _fits(self, message: Voted) -> bool:
        """Whether there is room to keep it. Without a question open there is: the server would have nothing to answer."""
        kept = self._keeping(message)
        return kept is None or self.asked < 0 or kept.nbytes + _size(message) <= self.keep_bytes

    async def _layers(self, message: Voted) -> None:
        start = time.perf_counter()
        kept = self._keeping(message)
        encoded = await asyncio.to_thread(self._encode, message, kept)
        # Asked in time, so that the answer is here before the room is used up.
        confirm = kept is not None and kept.nbytes + _largest(kept.network, message) > self.keep_bytes
        if confirm:
            self.asked = encoded[-1].index
        batch = message.layers[0].actual.shape[0]
        host = time.perf_counter() - start
        body = EncodedLayers(
            session=message.session,
            iteration=message.iteration,
            attempt=message.attempt,
            sent_at=time.time(),
            segment=message.segment,
            batch=batch,
            layers=encoded,
            confirm=confirm,
        )
        sent = await self.bus.publish("up/layers", body)
        await self._time(message, message.segment, "compress", host, sent)

    def _encode(self, message: Voted, kept: Kept | None) -> tuple[EncodedLayer, ...]:
        return tuple(self._encode_layer(layer, kept) for layer in message.layers)

    def _encode_layer(self, layer: LayerVoted, kept: Kept | None) -> EncodedLayer:
        actual = self.bus.open(layer.actual)
        vote = None if layer.vote is None or layer.direct else self.bus.open(layer.vote)
        if kept is not None:
            vote = kept.reference(layer.index, vote)
        encoded = EncodedLayer(layer.index, layers.digest(actual), layers.encode(actual, vote, self.codec))
        if kept is not None:
            kept.keep(layer.index, actual, encoded.body)
        intact = [self.bus.release(tensor) for tensor in _tensors(layer)]
        if not all(intact):
            raise ValueError(f"layer {layer.index} was taken back while it was being encoded")
        return encoded

    async def _rebuilt(self, message: Rebuilt) -> None:
        kept = self._keeping(message)
        if kept is None:
            return  # of an iteration that is over
        await asyncio.to_thread(kept.confirm, message.layer)
        if message.layer >= self.asked:
            self.asked = -1
        while self.waiting and self._fits(self.waiting[0]):
            await self._layers(self.waiting.popleft())

    async def _repair(self, message: Repair) -> None:
        kept = self._keeping(message)
        if kept is None:
            return  # of an iteration that is over
        start = time.perf_counter()
        corrections = await asyncio.to_thread(kept.correct, message.layer, message.digests)
        answer = EncodedRepair(
            session=message.session,
            iteration=message.iteration,
            attempt=message.attempt,
            sent_at=time.time(),
            layer=message.layer,
            layers=tuple(EncodedLayer(index, 0, body) for index, body in corrections.items()),
        )
        sent = await self.bus.publish("up/repair", answer)
        await self._time(message, REPAIR - message.layer, "compress", time.perf_counter() - start, sent)

    async def _time(
        self, of: Inputs | Voted | EncodedModel | Repair, segment: int, stage: Stage, host: float, sent: int = 0
    ) -> None:
        timing = Timing(session=of.session, stage=stage, iteration=of.iteration, segment=segment, host_s=host, bytes=sent)
        await self.bus.publish(f"event/{stage}", timing)


def _tensors(layer: LayerVoted) -> list[Tensor]:
    """Those that are this codec's to release; the vote of a direct layer is the agent's."""
    return [layer.actual] if layer.vote is None or layer.direct else [layer.actual, layer.vote]


def _size(message: Voted) -> int:
    return sum(math.prod(layer.actual.shape) for layer in message.layers)


def _largest(network: Network, message: Voted) -> int:
    """The most that one further message can bring, in bytes, if its layers come as the agent gathers them."""
    batch = message.layers[0].actual.shape[0]
    return SEGMENT_BYTES + batch * max(math.prod(layer.shape) for _, layer in network.convs())
