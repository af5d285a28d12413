"""The server's end of the link: rebuilds what the device computed, compresses the network that goes down."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np
import structlog

from accelsim.engine import Engine
from accelsim.int8 import storage
from accelsim.int8.network import INPUT, Conv, Int8, Network, UInt8
from services.bus import Bus
from services.bus.messages import (
    Ack,
    Activations,
    Deploy,
    EncodedInputs,
    EncodedLayer,
    EncodedLayers,
    EncodedModel,
    EncodedRepair,
    Forward,
    Inputs,
    LayerActivation,
    Rebuilt,
    Repair,
    SetMode,
    Stage,
    State,
    Tensor,
    Timing,
)
from services.codec.core import inputs, layers, model, repair
from services.codec.device_side import INPUTS, MODEL
from services.scheme import Codec

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
    reference: dict[int, Int8] = field(default_factory=dict)
    """Of the golden codec: the fault-free outputs, from the inputs alone."""
    next_layer: int = 0
    next_segment: int = 0
    early: dict[int, EncodedLayers] = field(default_factory=dict)
    due: deque[EncodedLayer] = field(default_factory=deque)
    """Layers whose turn it is."""
    corrections: dict[int, bytes] = field(default_factory=dict)
    repairs: int = 0
    """Requests sent; the second is for all that is left, so there is no third."""
    shared: list[Tensor] = field(default_factory=list)
    """What the trainer was given of this iteration; the next one takes it back."""
    waiting: bool = False
    """For the answer to the last of them."""
    done: int = 0
    """Activations messages sent."""
    asked: int = -1
    """The layer up to which the device wants to know that all are right; -1 for none."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A layer that was rebuilt wrong, by its digest; nothing after it can be rebuilt until it is mended."""

    index: int
    digests: bytes


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
        self.exact = False
        self.codec: Codec = "chained"

    async def serve(self) -> None:
        """Answer messages until cancelled."""
        await self.bus.subscribe("up/inputs", "up/layers", "up/repair", "up/ack", "server/model")
        await self.bus.subscribe("down/mode", "down/forward", "state/codec-device")
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
                    case EncodedRepair():
                        await self._repaired(message)
                    case SetMode():
                        self.codec = message.scheme.codec
                        self.exact = message.scheme.exact and self.codec == "chained"
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
        timing = Timing(session=self.session, stage=stage, iteration=iteration, segment=segment, host_s=host, bytes=sent)
        await self.bus.publish(f"event/{stage}", timing)

    # ---- what the device computed, up ----

    def _forward(self, message: Forward) -> None:
        if message.mode != "training" or message.session != self.session:
            return
        version = self.versions.get(message.version)
        if version is None:
            log.warning("forward names a network that is not here", version=message.version)
            return
        if self.rebuild is not None:
            for tensor in self.rebuild.shared:
                self.bus.withdraw(tensor)
        self.rebuild = Rebuild(message, version)

    def _current(self, message: EncodedInputs | EncodedLayers | EncodedRepair) -> Rebuild | None:
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
        now.outputs[INPUT] = now.reference[INPUT] = now.version.network.quantize_images(images)
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
            raise ValueError(f"fresh_of names images outside the batch of {len(message.hashes)}")
        if len(set(message.fresh_of)) != len(message.fresh_of):
            raise ValueError(f"fresh_of names {len(message.fresh_of)} images, some of them twice")
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

    async def _repaired(self, message: EncodedRepair) -> None:
        now = self._current(message)
        if now is None or not now.waiting:
            return
        now.corrections.update((layer.index, layer.body) for layer in message.layers)
        now.waiting = False
        await self._rebuild_ready(now)

    async def _rebuild_ready(self, now: Rebuild) -> None:
        while INPUT in now.outputs and not now.waiting:
            while not now.due and now.next_segment in now.early:
                message = now.early.pop(now.next_segment)
                now.due.extend(message.layers)
                now.next_segment += 1
                if message.confirm and message.layers:
                    now.asked = message.layers[-1].index
            if not now.due:
                return
            start = time.perf_counter()
            done, wrong = await asyncio.to_thread(self._rebuild_due, now)
            host = time.perf_counter() - start
            if done:
                await self._send_activations(now, tuple(done), host)
            if wrong is not None:
                await self._ask(now, wrong)
            if 0 <= now.asked < now.next_layer:
                await self._confirm(now)

    async def _confirm(self, now: Rebuild) -> None:
        forward = now.forward
        rebuilt = Rebuilt(session=forward.session, iteration=forward.iteration, attempt=forward.attempt, layer=now.asked)
        await self.bus.publish("down/rebuilt", rebuilt)
        now.asked = -1

    async def _send_activations(self, now: Rebuild, done: tuple[LayerActivation, ...], host: float) -> None:
        forward = now.forward
        await self.bus.publish(
            "server/activations",
            Activations(
                session=forward.session,
                iteration=forward.iteration,
                attempt=forward.attempt,
                segment=now.done,
                layers=done,
            ),
        )
        await self._time("decompress", forward.iteration, now.done, host)
        now.done += 1

    async def _ask(self, now: Rebuild, wrong: Wrong) -> None:
        """For one layer, by the digests of its channels; if another is wrong after that, for everything from there on."""
        now.repairs += 1
        now.waiting = True
        forward = now.forward
        wanted = Repair(
            session=forward.session,
            iteration=forward.iteration,
            attempt=forward.attempt,
            layer=wrong.index,
            digests=wrong.digests if now.repairs == 1 else None,
        )
        await self.bus.publish("down/repair", wanted)

    def _rebuild_due(self, now: Rebuild) -> tuple[list[LayerActivation], Wrong | None]:
        """Rebuild layers until none is due, or one is wrong and can be mended; that one stays due."""
        done: list[LayerActivation] = []
        while now.due:
            built = self._rebuild_layer(now, now.due[0])
            if isinstance(built, Wrong):
                return done, built
            now.due.popleft()
            done.append(built)
        return done, None

    def _rebuild_layer(self, now: Rebuild, encoded: EncodedLayer) -> LayerActivation | Wrong:
        """Predict the layer from what the device fed it, add what the device did differently."""
        network, engine = now.version.network, now.version.engine
        while now.next_layer < len(network.layers) and not isinstance(network.layers[now.next_layer], Conv):
            operands = [now.outputs[i] for i in network.layers[now.next_layer].inputs]
            now.outputs[now.next_layer] = engine.fault_free(now.next_layer, operands)
            if self.codec == "golden":
                operands = [now.reference[i] for i in network.layers[now.next_layer].inputs]
                now.reference[now.next_layer] = engine.fault_free(now.next_layer, operands)
            now.next_layer += 1
        index = now.next_layer
        if encoded.index != index or index == len(network.layers):
            raise ValueError(f"layer {encoded.index} came where layer {index} of {len(network.layers)} is next")
        shape = (now.outputs[INPUT].shape[0], *network.shape_of(index))
        predicted = layers.needs_prediction(encoded.body)
        prediction = None
        if self.codec == "golden":
            prediction = engine.fault_free(index, [now.reference[network.layers[index].inputs[0]]])
            now.reference[index] = prediction
        elif predicted:
            prediction = engine.fault_free(index, [now.outputs[network.layers[index].inputs[0]]])
        actual = layers.decode(encoded.body, prediction, shape)
        repaired = 0
        if predicted and index in now.corrections:
            mended = repair.apply(now.corrections[index], actual)
            repaired = int(np.count_nonzero(mended != actual))
            actual = mended
        faithful = layers.digest(actual) == encoded.digest
        if not faithful:
            if not predicted or index in now.corrections:
                raise ValueError(f"layer {index} does not have its digest, though it was sent whole or corrected")
            if self.exact and now.repairs < 2:
                return Wrong(index, repair.channel_digests(actual).astype("<u4").tobytes())
            if self.exact:
                raise ValueError(f"layer {index} is wrong after two repairs")
        now.outputs[index] = actual
        now.next_layer += 1
        tensor = self.bus.share(actual)
        now.shared.append(tensor)
        return LayerActivation(index=index, actual=tensor, faithful=faithful, repaired=repaired)
