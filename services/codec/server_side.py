"""The server's end of the link: rebuilds what the device computed, compresses the network that goes down. Messages to core
and back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import structlog

from accelsim.int8 import storage
from accelsim.int8.network import UInt8
from services.boundary import answer
from services.bus import Bus
from services.bus.messages import (
    FORGOTTEN,
    Ack,
    Activations,
    Deploy,
    EncodedInputs,
    EncodedLayers,
    EncodedModel,
    EncodedRepair,
    Forgotten,
    Forward,
    Inputs,
    LayerActivation,
    Message,
    Rebuilt,
    Repair,
    SetMode,
    Stage,
    State,
    Tensor,
    Timing,
)
from services.codec.core.rebuild import Rebuild, Wrong
from services.codec.core.segments import INPUTS, MODEL
from services.codec.core.sent import SentImages, SentLayer
from services.codec.core.server_end import ServerEnd
from services.known import known_faults
from services.scheme import SEGMENT_BYTES
from services.shown import plain
from services.views import seen

KNOWN = "down/mode: known"
log = structlog.get_logger()


@dataclass(slots=True)
class Pass:
    """The pass under way."""

    forward: Forward
    rebuild: Rebuild
    sent: int = 0
    """Activations messages sent."""
    shared: list[Tensor] = field(default_factory=list)
    """What the trainer was given of it; the next pass takes it back."""


@dataclass(slots=True)
class Session:
    """All that this end knows of one run. Another run's first network puts a new one in its place."""

    name: str
    end: ServerEnd
    now: Pass | None = None


class ServerCodec:
    """``server/*`` from ``up/*``, and ``down/model`` from ``server/model``. ``serve`` is its whole life."""

    def __init__(self, bus: Bus, path: str) -> None:
        self.bus = bus
        self.path = path
        self.session = Session("", ServerEnd(path))
        self.mode: SetMode | None = None
        """The newest, which may be of a run whose network is on its way."""
        self.boots: dict[str, str] = {}

    async def serve(self) -> None:
        """Answer messages until cancelled."""
        await self.bus.subscribe("up/inputs", "up/layers", "up/repair", "up/ack", "server/model")
        await self.bus.subscribe("down/mode", "down/forward", "state/codec-device")
        await answer(self.bus, self.take)

    async def take(self, message: Message) -> None:
        """One message. Raises ValueError for one that is wrong, and is then as before."""
        match message:
            case SetMode():
                await asyncio.to_thread(known_faults, message.known, KNOWN)
                self.mode = message
            case Deploy():
                self._enter(message.session)
                await self._deploy(message)
            case Ack():
                await self._ack(message)
            case State():
                await self._state(message)
            case Forward():
                self._forward(message)
            case EncodedInputs():
                await self._inputs(message)
            case EncodedLayers():
                await self._layers(message)
            case EncodedRepair():
                await self._repaired(message)

    def _enter(self, name: str) -> None:
        """Go on in a session; where it is another one nothing of the one before is left."""
        if self.session.name != name:
            log.info("session", session=name)
            self._end_pass()
            self.session = Session(name, ServerEnd(self.path))

    def _end_pass(self) -> None:
        """Give up the pass under way, and take back what the trainer was given of it."""
        if self.session.now is not None:
            for tensor in self.session.now.shared:
                self.bus.withdraw(tensor)
        self.session.now = None

    # ---- the network, down ----

    async def _deploy(self, message: Deploy) -> None:
        data = self.bus.open(message.network).tobytes()
        self.bus.release(message.network)
        network = storage.from_bytes(data)
        await asyncio.to_thread(self.session.end.deploy, message.version, message.iteration, network)
        await self._send_model()

    async def _send_model(self) -> None:
        start = time.perf_counter()
        end = self.session.end
        sent = await asyncio.to_thread(end.model)
        iteration = end.versions[sent.version].iteration
        message = EncodedModel(
            session=self.session.name,
            iteration=iteration,
            sent_at=time.time(),
            version=sent.version,
            base=sent.base,
            digest=sent.digest,
            body=sent.body,
        )
        nbytes = await self.bus.publish("down/model", message)
        if iteration >= 0:
            await self._time("compress", iteration, MODEL, time.perf_counter() - start, nbytes)

    async def _ack(self, ack: Ack) -> None:
        end = self.session.end
        if ack.session != self.session.name:
            return
        if ack.of == "base" and end.newest and ack.seq == end.newest:
            log.info("sending the model whole", reason=plain(ack.error))
            end.lost()
            await self._send_model()

    async def _state(self, state: State) -> None:
        """A device's end that started anew has no network to build on."""
        known = self.boots.get(state.service)
        if state.online and known != state.boot:
            self.boots[state.service] = state.boot
            if known is not None and self.session.end.newest:
                self.session.end.lost()
                await self._send_model()

    async def _time(self, stage: Stage, iteration: int, segment: int, host: float, nbytes: int = 0) -> None:
        session = self.session.name
        timing = Timing(session=session, stage=stage, iteration=iteration, segment=segment, host_s=host, bytes=nbytes)
        await self.bus.publish(f"event/{stage}", timing)

    # ---- what the device computed, up ----

    def _forward(self, message: Forward) -> None:
        if message.mode != "training" or message.session != self.session.name:
            return
        if self.mode is None or self.mode.session != message.session:
            raise ValueError(f"a pass of session {message.session!r}, whose mode has not come")
        known = known_faults(self.mode.known, KNOWN)
        rebuild = self.session.end.begin(message.version, self.mode.scheme, known)
        self._end_pass()
        self.session.now = Pass(message, rebuild)

    def _now(self, message: EncodedInputs | EncodedLayers | EncodedRepair) -> Pass | None:
        """The pass under way, if a message is of just that."""
        now = self.session.now
        if now is None:
            return None
        of = (now.forward.session, now.forward.iteration, now.forward.attempt)
        return now if (message.session, message.iteration, message.attempt) == of else None

    async def _inputs(self, message: EncodedInputs) -> None:
        now = self._now(message)
        if now is None:
            await self._late(message)
        if now is None or now.rebuild.started:
            return
        await self._time("uplink", message.iteration, INPUTS, max(0.0, time.time() - message.sent_at))
        try:
            images = await asyncio.to_thread(self._images, now, message)
        finally:
            await self._tell_forgotten()
        tensor = self.bus.share(images)
        now.shared.append(tensor)
        inputs = Inputs(
            session=message.session,
            iteration=message.iteration,
            attempt=message.attempt,
            images=tensor,
            labels=message.labels,
        )
        await self.bus.publish("server/inputs", inputs)
        await self._rebuild(now)

    async def _late(self, message: EncodedInputs) -> None:
        """Images of a pass that was given up: the device takes them for known here, and sends their names alone from now on."""
        end = self.session.end
        if message.session == self.session.name and end.newest:
            sent = SentImages(message.hashes, message.shape, message.fresh, message.fresh_of)
            try:
                await asyncio.to_thread(end.images, sent, end.versions[end.newest].network)
            finally:
                await self._tell_forgotten()

    async def _tell_forgotten(self) -> None:
        """Else the device would name what is not here, and a whole pass would be asked for again."""
        names = self.session.end.forgotten()
        for first in range(0, len(names), FORGOTTEN):
            forgotten = Forgotten(session=self.session.name, hashes=tuple(names[first : first + FORGOTTEN]))
            await self.bus.publish("down/forgotten", forgotten)

    def _images(self, now: Pass, message: EncodedInputs) -> UInt8:
        sent = SentImages(message.hashes, message.shape, message.fresh, message.fresh_of)
        images = seen(self.session.end.images(sent, now.rebuild.network), now.forward.view)
        now.rebuild.start(images)
        return images

    async def _layers(self, message: EncodedLayers) -> None:
        now = self._now(message)
        segment = [SentLayer(layer.index, layer.digest, layer.body) for layer in message.layers]
        if now is None or not now.rebuild.take(message.segment, segment, confirm=message.confirm):
            return
        await self._time("uplink", message.iteration, message.segment, max(0.0, time.time() - message.sent_at))
        await self._rebuild(now)

    async def _repaired(self, message: EncodedRepair) -> None:
        now = self._now(message)
        if now is not None and now.rebuild.mend({layer.index: layer.body for layer in message.layers}):
            await self._rebuild(now)

    async def _rebuild(self, now: Pass) -> None:
        """As many layers as are here; what they came to goes to the trainer, what is wrong is asked for."""
        forward, rebuild = now.forward, now.rebuild
        of: dict[str, Any] = {"session": forward.session, "iteration": forward.iteration, "attempt": forward.attempt}
        while rebuild.ready():
            start = time.perf_counter()
            done, wrong = await asyncio.to_thread(self._due, now)
            host = time.perf_counter() - start
            if done:
                await self.bus.publish("server/activations", Activations(**of, segment=now.sent, layers=tuple(done)))
                await self._time("decompress", forward.iteration, now.sent, host)
                now.sent += 1
            if wrong is not None:
                await self.bus.publish("down/repair", Repair(**of, layer=wrong.index, digests=wrong.digests))
            confirmed = rebuild.confirmed()
            if confirmed is not None:
                await self.bus.publish("down/rebuilt", Rebuilt(**of, layer=confirmed))

    def _due(self, now: Pass) -> tuple[list[LayerActivation], Wrong | None]:
        """Some layers, as many as share a message, and the one after them that is wrong."""
        done: list[LayerActivation] = []
        nbytes = 0
        while nbytes < SEGMENT_BYTES and (found := now.rebuild.next()) is not None:
            if isinstance(found, Wrong):
                return done, found
            tensor = self.bus.share(found.actual)
            now.shared.append(tensor)
            done.append(LayerActivation(index=found.index, actual=tensor, faithful=found.faithful, repaired=found.repaired))
            nbytes += found.actual.nbytes
        return done, None
