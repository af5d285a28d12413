"""The device's end of the link: compresses what goes up, rebuilds the network that comes down. Messages to core and back."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import structlog

from accelsim.int8 import storage
from accelsim.int8.network import Network
from services.boundary import answer, cut
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
    Forgotten,
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
from services.codec.core.device_end import DeviceEnd, WrongBase
from services.codec.core.segments import INPUTS, MODEL, REPAIR
from services.codec.core.sent import SentLayer, SentModel
from services.known import known_faults

KNOWN = "down/mode: known"
log = structlog.get_logger()


@dataclass(slots=True)
class Session:
    """All that this end knows of one run. Another run's model puts a new one in its place."""

    name: str
    end: DeviceEnd
    iteration: int = -1
    """That the newest model came from."""
    waiting: deque[Voted] = field(default_factory=deque)
    """What there is no room to keep before it has; its tensors stay where they are, so the agent slows down."""


class DeviceCodec:
    """``up/*`` from ``edge/*``, and ``edge/model`` from ``down/model``. ``serve`` is its whole life.

    ``keep_bytes`` bounds what is kept of an iteration for repairs, but for one message that is always taken.
    """

    def __init__(self, bus: Bus, path: str, keep_bytes: int) -> None:
        self.bus = bus
        self.path = path
        self.keep_bytes = keep_bytes
        self.session = Session("", DeviceEnd(path, keep_bytes))
        self.mode: SetMode | None = None
        """The newest, which may be of a run whose model is on its way."""
        self.boots: dict[str, str] = {}

    async def serve(self) -> None:
        """Answer messages until cancelled."""
        await self.bus.subscribe("down/mode", "down/model", "down/repair", "down/rebuilt", "down/forgotten")
        await self.bus.subscribe("edge/inputs", "edge/voted")
        await self.bus.subscribe("state/codec-server", "state/agent")
        await answer(self.bus, self.take)

    async def take(self, message: Message) -> None:
        """One message. Raises ValueError for one that is wrong, and is then as before."""
        match message:
            case SetMode():
                await asyncio.to_thread(known_faults, message.known, KNOWN)
                self.mode = message
            case EncodedModel():
                self._enter(message.session)
                await self._model(message)
            case Inputs():
                await self._inputs(message)
            case Voted(mode="training"):
                await self._voted(message)
            case Repair() if self._running(message):
                await self._repair(message)
            case Rebuilt() if self._running(message):
                await self._rebuilt(message)
            case Forgotten() if message.session == self.session.name:
                self.session.end.forget(message.hashes)
            case State():
                await self._state(message)

    def _enter(self, name: str) -> None:
        """Go on in a session; where it is another one nothing of the one before is left."""
        if self.session.name != name:
            log.info("session", session=name)
            self._drop_waiting()
            self.session = Session(name, DeviceEnd(self.path, self.keep_bytes))

    def _drop_waiting(self) -> None:
        """What waits is of a pass that is over; its tensors go back to their senders."""
        while self.session.waiting:
            self._release(self.session.waiting.popleft())

    def _release(self, message: Voted) -> None:
        for tensor in (t for layer in message.layers for t in _tensors(layer)):
            self.bus.release(tensor)

    def _running(self, message: Voted | Repair | Rebuilt) -> bool:
        """Whether a message is of just the pass under way."""
        of = (message.iteration, message.attempt)
        return message.session == self.session.name and of == self.session.end.running

    async def _state(self, state: State) -> None:
        """A server that started anew knows no samples; an agent that did has no network."""
        if not state.online or self.boots.get(state.service) == state.boot:
            return
        self.boots[state.service] = state.boot
        end = self.session.end
        if state.service == "codec-server":
            end.lost()
        elif end.network is not None and state.version != end.version:
            await self._deploy(end.network, end.version)

    # ---- the network, down ----

    async def _model(self, message: EncodedModel) -> None:
        end = self.session.end
        try:
            new = await asyncio.to_thread(end.model, SentModel(message.version, message.base, message.digest, message.body))
        except WrongBase as error:
            log.info("model asked for whole", reason=str(error))
            await self._refuse(message, "base", error)
            return
        except Exception as error:
            log.error("model refused", version=message.version, error=str(error), exc_info=not isinstance(error, ValueError))
            await self._refuse(message, "model", error)
            return
        if new:
            self._drop_waiting()  # the iteration that it came from is over
        if new:
            self.session.iteration = message.iteration
        if end.network is not None:
            await self._deploy(end.network, end.version)  # a repeat, too: the agent may be the one that lacks it
        if new and message.iteration >= 0:
            await self._time(message, MODEL, "downlink", max(0.0, time.time() - message.sent_at))

    async def _refuse(self, message: EncodedModel, of: Command, error: Exception) -> None:
        version = self.session.end.version
        ack = Ack(
            session=message.session,
            of=of,
            seq=message.version,
            ok=False,
            version=version,
            error=cut(str(error) or repr(error)),
        )
        await self.bus.publish("up/ack", ack)

    async def _deploy(self, network: Network, version: int) -> None:
        data = self.bus.share(np.frombuffer(storage.to_bytes(network), np.uint8))
        deploy = Deploy(session=self.session.name, iteration=self.session.iteration, version=version, network=data)
        await self.bus.publish("edge/model", deploy)

    # ---- what the device computed, up ----

    async def _inputs(self, message: Inputs) -> None:
        start = time.perf_counter()
        if message.session != self.session.name or self.mode is None or self.mode.session != message.session:
            self.bus.release(message.images)
            raise ValueError(f"images of session {message.session!r}, whose model or mode has not come")
        end, images, files = self.session.end, self.bus.open(message.images), message.files
        known = known_faults(self.mode.known, KNOWN)
        try:
            sent = await asyncio.to_thread(
                end.begin, self.mode.scheme, message.iteration, message.attempt, images, files, message.view, known
            )
        finally:
            intact = self.bus.release(message.images)
        self._drop_waiting()
        if not intact:
            end.end()
            raise ValueError("the images were taken back while they were being encoded")
        encoded = EncodedInputs(
            session=message.session,
            iteration=message.iteration,
            attempt=message.attempt,
            sent_at=time.time(),
            hashes=sent.hashes,
            labels=message.labels,
            shape=sent.shape,
            fresh=sent.fresh,
            fresh_of=sent.fresh_of,
        )
        nbytes = await self.bus.publish("up/inputs", encoded)
        await self._time(message, INPUTS, "compress", time.perf_counter() - start, nbytes)

    async def _voted(self, message: Voted) -> None:
        if not self._running(message):
            self._release(message)  # of a pass that is over
            return
        try:
            self._check(message)
        except ValueError:
            self._release(message)
            raise
        if self.session.waiting or not self.session.end.fits(_size(message)):
            self.session.waiting.append(message)
        else:
            await self._layers(message)

    def _check(self, message: Voted) -> None:
        if not message.layers:
            raise ValueError(f"segment {message.segment} has no layers")
        for layer in message.layers:
            self.session.end.check(layer.index, layer.actual.shape, layer.actual.dtype)

    async def _layers(self, message: Voted) -> None:
        start = time.perf_counter()
        end = self.session.end
        sent = await asyncio.to_thread(lambda: [self._layer(layer) for layer in message.layers])
        # Asked in time, so that the answer is here before the room is used up.
        confirm = end.asks(sent[-1].index)
        host = time.perf_counter() - start
        encoded = EncodedLayers(
            session=message.session,
            iteration=message.iteration,
            attempt=message.attempt,
            sent_at=time.time(),
            segment=message.segment,
            batch=end.batch,
            layers=tuple(EncodedLayer(layer.index, layer.digest, layer.body) for layer in sent),
            confirm=confirm,
        )
        nbytes = await self.bus.publish("up/layers", encoded)
        await self._time(message, message.segment, "compress", host, nbytes)

    def _layer(self, layer: LayerVoted) -> SentLayer:
        actual = self.bus.open(layer.actual)
        vote = None if layer.vote is None or layer.direct else self.bus.open(layer.vote)
        sent = self.session.end.layer(layer.index, actual, vote)
        intact = [self.bus.release(tensor) for tensor in _tensors(layer)]
        if not all(intact):
            raise ValueError(f"layer {layer.index} was taken back while it was being encoded")
        return sent

    async def _rebuilt(self, message: Rebuilt) -> None:
        end, waiting = self.session.end, self.session.waiting
        await asyncio.to_thread(end.confirm, message.layer)
        while waiting and end.fits(_size(waiting[0])):
            await self._layers(waiting.popleft())

    async def _repair(self, message: Repair) -> None:
        start = time.perf_counter()
        corrections = await asyncio.to_thread(self.session.end.correct, message.layer, message.digests)
        corrected = EncodedRepair(
            session=message.session,
            iteration=message.iteration,
            attempt=message.attempt,
            sent_at=time.time(),
            layer=message.layer,
            layers=tuple(EncodedLayer(index, 0, body) for index, body in corrections.items()),
        )
        nbytes = await self.bus.publish("up/repair", corrected)
        await self._time(message, REPAIR - message.layer, "compress", time.perf_counter() - start, nbytes)

    async def _time(
        self, of: Inputs | Voted | EncodedModel | Repair, segment: int, stage: Stage, host: float, nbytes: int = 0
    ) -> None:
        timing = Timing(session=of.session, stage=stage, iteration=of.iteration, segment=segment, host_s=host, bytes=nbytes)
        await self.bus.publish(f"event/{stage}", timing)


def _tensors(layer: LayerVoted) -> list[Tensor]:
    """Those that are this codec's to release; the vote of a direct layer is the agent's."""
    return [layer.actual] if layer.vote is None or layer.direct else [layer.actual, layer.vote]


def _size(message: Voted) -> int:
    return sum(math.prod(layer.actual.shape) for layer in message.layers)
