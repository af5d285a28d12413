"""The server's end of the link: rebuilds what the device computed, compresses the network that goes down."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import structlog

from accelsim import storage
from accelsim.engine import Engine
from accelsim.network import INPUT, Conv, Int8, Network, UInt8
from services.bus import Bus
from services.bus.messages import (
    Ack,
    Activations,
    Deploy,
    EncodedInputs,
    EncodedLayer,
    EncodedLayers,
    EncodedModel,
    Forward,
    Inputs,
    LayerActivation,
    Stage,
    State,
    Timing,
)
from services.codec import inputs, layers, model
from services.codec.device import INPUTS, MODEL

log = structlog.get_logger()

MAX_BATCH = 1024
SAMPLE_CACHE_BYTES = 1 << 30
"""Images kept by content hash, so that a later epoch sends hashes; the least recently used go first."""


@dataclass(slots=True)
class Version:
    number: int
    iteration: int
    network: Network
    engine: Engine


@dataclass(slots=True)
class Rebuild:
    """What is known of the running iteration. Layers are rebuilt in order, whatever the order of their messages."""

    forward: Forward
    version: Version
    outputs: dict[int, Int8] = field(default_factory=dict)
    next_layer: int = 0
    next_segment: int = 0
    early: dict[int, EncodedLayers] = field(default_factory=dict)


class ServerCodec:
    """``server/*`` from ``up/*``, and ``down/model`` from ``server/model``. ``serve`` is its whole life."""

    def __init__(self, bus: Bus, path: str) -> None:
        self.bus = bus
        self.path = path
        self.versions: dict[int, Version] = {}
        self.newest = 0
        self.acknowledged = 0
        self.session = ""
        self.samples: OrderedDict[bytes, UInt8] = OrderedDict()
        self.samples_bytes = 0
        self.rebuild: Rebuild | None = None
        self.boots: dict[str, str] = {}

    async def serve(self) -> None:
        """Answer messages until cancelled."""
        names = ("up/inputs", "up/layers", "up/ack", "server/model", "down/forward", "state/codec-device")
        await self.bus.subscribe(*names)
        async for topic, message in self.bus:
            try:
                match message:
                    case Deploy():
                        await self._deploy(message)
                    case Forward():
                        self._forward(message)
                    case EncodedInputs():
                        await self._inputs(message)
                    case EncodedLayers():
                        await self._layers(message)
                    case Ack():
                        await self._ack(message)
                    case State():
                        await self._state(message)
            except ValueError as error:
                # Hostile or damaged: the iteration is repeated by the trainer, never silently wrong.
                self.bus.reject(topic, str(error))

    # ---- the network, down ----

    async def _deploy(self, message: Deploy) -> None:
        data = self.bus.open(message.network).tobytes()
        self.bus.release(message.network)
        if message.session != self.session:
            self.session, self.versions, self.acknowledged, self.rebuild = message.session, {}, 0, None
        network = storage.from_bytes(data)
        engine = await asyncio.to_thread(Engine, network, self.path)
        self.versions[message.version] = Version(message.version, message.iteration, network, engine)
        self.newest = message.version
        await self._send_model()

    async def _send_model(self) -> None:
        """The newest version against the acknowledged one, or whole where there is none."""
        start = time.perf_counter()
        new = self.versions[self.newest]
        base = self.versions.get(self.acknowledged)
        if base is new:
            base = None
        body = await asyncio.to_thread(model.encode, None if base is None else base.network, new.network)
        message = EncodedModel(
            session=self.session,
            iteration=new.iteration,
            sent_at=time.time(),
            version=new.number,
            base=0 if base is None else base.number,
            digest=model.digest(new.network),
            body=body,
        )
        sent = await self.bus.publish("down/model", message)
        for number in [n for n in self.versions if n not in (self.newest, self.acknowledged)]:
            del self.versions[number]
        if new.iteration >= 0:
            await self._time("compress", new.iteration, MODEL, time.perf_counter() - start, sent)

    async def _ack(self, ack: Ack) -> None:
        if ack.session != self.session:
            return
        if ack.of == "model" and ack.ok:
            self.acknowledged = ack.version
        if ack.of == "base" and ack.seq == self.newest:
            log.warning("sending the model whole", reason=ack.error)
            self.acknowledged = 0
            await self._send_model()

    async def _state(self, state: State) -> None:
        """A device's end that started anew has no network to build on."""
        known = self.boots.get(state.service)
        if state.online and known != state.boot:
            self.boots[state.service] = state.boot
            if known is not None and self.newest:
                self.acknowledged = 0
                await self._send_model()

    async def _time(self, stage: Stage, iteration: int, segment: int, host: float, sent: int = 0) -> None:
        timing = Timing(
            session=self.session, stage=stage, iteration=iteration, segment=segment, host_s=host, bytes=sent
        )
        await self.bus.publish(f"event/{stage}", timing)

    # ---- what the device computed, up ----

    def _forward(self, message: Forward) -> None:
        if message.mode != "training" or message.session != self.session:
            return
        version = self.versions.get(message.version)
        if version is None:
            log.warning("forward names a network that is not here", version=message.version)
            return
        self.rebuild = Rebuild(message, version)

    def _current(self, message: EncodedInputs | EncodedLayers) -> Rebuild | None:
        now = self.rebuild
        if now is None or (message.session, message.iteration, message.attempt) != (
            now.forward.session,
            now.forward.iteration,
            now.forward.attempt,
        ):
            return None
        return now

    async def _inputs(self, message: EncodedInputs) -> None:
        now = self._current(message)
        if now is None or INPUT in now.outputs:
            return
        await self._time("uplink", message.iteration, INPUTS, max(0.0, time.time() - message.sent_at))
        images = self._images(message, now.version.network)
        now.outputs[INPUT] = now.version.network.quantize_images(images)
        await self.bus.publish(
            "server/inputs",
            Inputs(
                session=message.session,
                iteration=message.iteration,
                attempt=message.attempt,
                images=self.bus.share(images),
                labels=message.labels,
            ),
        )
        await self._rebuild_ready(now)

    def _images(self, message: EncodedInputs, network: Network) -> UInt8:
        """The batch from what is fresh and what was sent before. Raises ValueError if any of it is wrong or missing."""
        if message.shape != network.input_shape:
            raise ValueError(f"images of shape {message.shape}, the network takes {network.input_shape}")
        if not 0 < len(message.hashes) <= MAX_BATCH:
            raise ValueError(f"a batch of {len(message.hashes)} images; 1 to {MAX_BATCH} are taken")
        if any(not 0 <= i < len(message.hashes) for i in message.fresh_of):
            raise ValueError(f"fresh_of {message.fresh_of} names images outside the batch of {len(message.hashes)}")
        if message.fresh_of:
            decoded = inputs.decode(message.fresh, len(message.fresh_of), message.shape)
            for i, image in zip(message.fresh_of, decoded, strict=True):
                if inputs.sample_hash(image) != message.hashes[i]:
                    raise ValueError(f"image {i} of iteration {message.iteration} does not have the hash sent with it")
                self._remember(message.hashes[i], image)
        missing = [i for i, name in enumerate(message.hashes) if name not in self.samples]
        if missing:
            raise ValueError(f"images {missing} of iteration {message.iteration} were sent as hashes, but are not here")
        for name in message.hashes:
            self.samples.move_to_end(name)
        return np.stack([self.samples[name] for name in message.hashes])

    def _remember(self, name: bytes, image: UInt8) -> None:
        if name not in self.samples:
            self.samples[name] = image
            self.samples_bytes += image.nbytes
        while self.samples_bytes > SAMPLE_CACHE_BYTES and len(self.samples) > MAX_BATCH:
            self.samples_bytes -= self.samples.popitem(last=False)[1].nbytes

    async def _layers(self, message: EncodedLayers) -> None:
        now = self._current(message)
        if now is None or message.segment < now.next_segment:
            return
        if message.segment > now.next_segment + len(now.version.network.layers):
            raise ValueError(f"segment {message.segment}, the next one is {now.next_segment}")
        await self._time("uplink", message.iteration, message.segment, max(0.0, time.time() - message.sent_at))
        now.early[message.segment] = message
        await self._rebuild_ready(now)

    async def _rebuild_ready(self, now: Rebuild) -> None:
        while INPUT in now.outputs and now.next_segment in now.early:
            message = now.early.pop(now.next_segment)
            start = time.perf_counter()
            done = await asyncio.to_thread(self._rebuild_segment, now, message)
            now.next_segment += 1
            host = time.perf_counter() - start
            await self.bus.publish(
                "server/activations",
                Activations(
                    session=message.session,
                    iteration=message.iteration,
                    attempt=message.attempt,
                    segment=message.segment,
                    layers=done,
                ),
            )
            await self._time("decompress", message.iteration, message.segment, host)

    def _rebuild_segment(self, now: Rebuild, message: EncodedLayers) -> tuple[LayerActivation, ...]:
        return tuple(self._rebuild_layer(now, layer, message) for layer in message.layers)

    def _rebuild_layer(self, now: Rebuild, encoded: EncodedLayer, message: EncodedLayers) -> LayerActivation:
        """Predict the layer from what the device fed it, add what the device did differently."""
        network, engine = now.version.network, now.version.engine
        while now.next_layer < len(network.layers) and not isinstance(network.layers[now.next_layer], Conv):
            operands = [now.outputs[i] for i in network.layers[now.next_layer].inputs]
            now.outputs[now.next_layer] = engine.golden(now.next_layer, operands)
            now.next_layer += 1
        if encoded.index != now.next_layer:
            raise ValueError(f"layer {encoded.index} came where layer {now.next_layer} is next")
        batch = now.outputs[INPUT].shape[0]
        shape = (batch, *network.shape_of(encoded.index))
        prediction = None
        if layers.needs_prediction(encoded.body):
            operand = network.layers[encoded.index].inputs[0]
            prediction = engine.golden(encoded.index, [now.outputs[operand]])
        actual = layers.decode(encoded.body, prediction, shape)
        faithful = layers.digest(actual) == encoded.digest
        now.outputs[encoded.index] = actual
        now.next_layer += 1
        return LayerActivation(index=encoded.index, actual=self.bus.share(actual), faithful=faithful)
