"""The server's half of the paper's Table I."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import structlog

from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Int8, Network, UInt8
from services.bus import Bus, BusError, topics
from services.bus.messages import (
    Ack,
    Activations,
    Deploy,
    Forward,
    Inputs,
    Message,
    Outputs,
    Phase,
    Progress,
    SetMode,
    Stage,
    State,
    Tensor,
    Timing,
)
from services.scheme import CHAINED, Scheme

log = structlog.get_logger()
T = TypeVar("T")

PATH = ("agent", "voter", "codec-device", "codec-server")
"""The services between a Forward and its activations; a restart of one loses what it held of an iteration."""


class Mode(StrEnum):
    """Table I's mode of the AIoT processor."""

    TRAINING = "training"
    INFERENCE = "inference"


class DeviceError(BusError):
    """The device, or a service on the way to it, did not do what it was told; the message says which and why."""


@dataclass(slots=True)
class Data:
    """What one forward pass of the device gave: Table I's getData.

    ``outputs`` is the network's int8 output (N, 1, 1, C). In training mode ``images`` is the batch, uint8 (N, H, W, C),
    and ``activations`` every MAC layer's output, int8 (N, H, W, C), by layer index; in inference mode both are empty.
    ``labels`` is int64 (N,), or None if the device has none. ``mismatched_layers`` are those whose rebuilt tensor does not
    have the digest that the device sent; ``repaired`` counts elements that were wrong until a repair mended them.
    """

    iteration: int
    attempt: int
    images: UInt8 | None = None
    labels: npt.NDArray[np.int64] | None = None
    outputs: Int8 | None = None
    activations: dict[int, Int8] = field(default_factory=dict)
    mismatched_layers: set[int] = field(default_factory=set)
    repaired: int = 0

    @property
    def mismatched(self) -> int:
        """Elements of the layers that are not the device's: an upper bound, for a digest does not count."""
        return sum(self.activations[index].size for index in self.mismatched_layers)


class Server:
    """``server.*`` of Table I, over an open bus, for any number of devices. One session a run.

    Every call raises DeviceError when the device refuses, or is silent for ``patience`` seconds, ``attempts`` times.
    Nothing is lost when a service or the broker restarts in the middle: the pass is repeated and gives the same data.
    docs/api.md has an example to paste.
    """

    def __init__(self, bus: Bus, session: str, *, patience: float = 20.0, attempts: int = 4) -> None:
        self.bus = bus
        self.session = session
        self.patience = patience
        self.attempts = attempts
        self.failure: BusError | None = None
        """Why no more messages will come."""
        self._devices: dict[str, _Device] = {}

    # ---- Table I ----

    async def set_mode(
        self,
        device: str,
        mode: Mode,
        *,
        rates: Rates,
        seed: int,
        scheme: Scheme = CHAINED,
    ) -> None:
        """``server.setAIoTMode``: how the device runs from now on (see ``SetMode``). Returns when it has acknowledged."""
        known = await self._device(device)
        known.sequence += 1
        known.mode = mode
        message = SetMode(
            session=self.session,
            seq=known.sequence,
            mode=mode.value,
            rates=rates,
            seed=seed,
            scheme=scheme,
        )

        def send(attempt: int) -> Awaitable[object]:
            return known.publish("down/mode", message, retain=True)

        await known.until(send, lambda: known.acknowledged("mode", message.seq), f"mode {mode}")

    async def deploy_model(
        self, device: str, network: Network, *, version: int | None = None, iteration: int = -1, wait: bool = True
    ) -> int:
        """``server.deployModel``: send an int8 network to the device; returns its version, 1 or more.

        With ``wait`` it returns when the device runs it. Without, the next ``get_data`` waits for it, which saves a
        round trip an iteration. ``iteration`` is the one that made the network, for the timing events.
        """
        known = await self._device(device)
        known.version = known.version + 1 if version is None else version
        known.network, known.iteration = network, iteration
        number = known.version
        if not wait:
            await known.send_model()
            return number

        def send(attempt: int) -> Awaitable[object]:
            return known.send_model()

        await known.until(send, lambda: known.acknowledged("model", number), f"model version {number}")
        return number

    async def get_data(
        self,
        device: str,
        *,
        iteration: int,
        split: Literal["train", "test"],
        samples: Sequence[int],
        seed: int | None = None,
    ) -> Data:
        """``server.getData``: run these samples on the device in its present mode and collect what it computed.

        ``seed`` stands in for the mode's fault seed. Images and activations are views into shared memory, good until the
        next ``get_data`` of that device.
        """
        known = await self._device(device)
        if known.network is None:
            raise DeviceError(f"device {device!r}: no network was deployed; call deploy_model first")
        training = known.mode is Mode.TRAINING
        wanted = {index for index, _ in known.network.convs()}

        async def send(attempt: int) -> None:
            known.reset(iteration, attempt)
            if attempt > 0:
                log.warning("forward repeated", device=device, iteration=iteration, attempt=attempt)
                await known.send_model()
            forward = Forward(
                session=self.session,
                iteration=iteration,
                attempt=attempt,
                mode=known.mode.value,
                version=known.version,
                split=split,
                samples=tuple(int(i) for i in samples),
                seed=seed,
            )
            await known.publish("down/forward", forward)

        def complete() -> Data | None:
            known.refused("forward", iteration)
            data = known.data
            if data is None or (data.outputs is None and not training):
                return None
            if training and (data.images is None or data.activations.keys() != wanted):
                return None
            return data

        return await known.until(send, complete, f"iteration {iteration}")

    # ---- beside it ----

    async def ready(self, device: str, within_s: float = 60.0) -> State:
        """Wait until every service of the pipeline is there; returns the agent's state, with its sample counts.

        Raises DeviceError naming the missing ones.
        """
        return await (await self._device(device)).ready(within_s)

    async def on_timing(self, device: str, take: Callable[[Timing], None]) -> None:
        """Have ``take`` called with every stage's timing event of this session."""
        (await self._device(device)).on_timing = take

    async def publish_timing(self, device: str, stage: Stage, iteration: int, host_s: float) -> None:
        """``event/{stage}`` of a stage that the server itself ran."""
        timing = Timing(session=self.session, stage=stage, iteration=iteration, host_s=host_s)
        await self.bus.publish(self.bus.topic(f"event/{stage}", device), timing)

    async def publish_progress(self, device: str, phase: Phase, step: int, steps: int, value: float, norm: float = 0.0) -> None:
        """``event/progress``"""
        progress = Progress(session=self.session, phase=phase, step=step, steps=steps, value=value, grad_norm=norm)
        await self.bus.publish(self.bus.topic("event/progress", device), progress)

    async def pump(self) -> None:
        """Take in messages until cancelled; ``serving`` runs it."""
        try:
            async for topic, message in self.bus:
                device = self._devices.get(topics.parse(topic).device)
                if device is None:
                    continue
                try:
                    await device.take(message)
                except ValueError as error:
                    self.bus.reject(topic, str(error))
        except BusError as error:
            self.failure = error
            for device in self._devices.values():
                await device.wake()

    async def _device(self, name: str) -> _Device:
        if name not in self._devices:
            self._devices[name] = _Device(self, name)
            planes = ("up/ack", "up/outputs", "server/inputs", "server/activations", "event/+")
            short = (*planes, *(f"state/{service}" for service in PATH))
            await self.bus.subscribe(*(self.bus.topic(topic, name) for topic in short))
        return self._devices[name]


class _Device:
    """What the server knows of one device, and its waiting for it."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.mode = Mode.INFERENCE
        self.sequence = 0
        self.version = 0
        self.network: Network | None = None
        self.iteration = -1
        self.data: Data | None = None
        self.on_timing: Callable[[Timing], None] | None = None
        self._states: dict[str, State] = {}
        self._acks: list[Ack] = []
        self._tensors: list[Tensor] = []
        self._changed = asyncio.Condition()
        self._progress = 0
        self._restarts = 0

    async def publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        await self.server.bus.publish(self.server.bus.topic(topic, self.name), message, retain=retain)

    async def send_model(self) -> None:
        assert self.network is not None
        data = self.server.bus.share(np.frombuffer(storage.to_bytes(self.network), np.uint8))
        session = self.server.session
        await self.publish(
            "server/model", Deploy(session=session, iteration=self.iteration, version=self.version, network=data)
        )

    async def ready(self, within_s: float) -> State:

        def present() -> State | None:
            online = {name for name, state in self._states.items() if state.online}
            # The agent counts its samples only after its birth.
            return self._states["agent"] if online.issuperset(PATH) and self._states["agent"].samples else None

        async with self._changed:
            try:
                async with asyncio.timeout(within_s):
                    while (found := present()) is None:
                        if self.server.failure is not None:
                            raise self.server.failure
                        await self._changed.wait()
            except TimeoutError:
                missing = sorted(set(PATH) - {n for n, s in self._states.items() if s.online})
                raise DeviceError(
                    f"device {self.name!r}: no sign of {', '.join(missing)} within {within_s:g} s; "
                    f"are they running, and with --device {self.name}?"
                ) from None
        return found

    def acknowledged(self, of: Literal["mode", "model"], seq: int) -> bool:
        self.refused(of, seq)
        return any(ack.of == of and ack.seq == seq and ack.ok for ack in self._acks)

    def refused(self, of: str, seq: int) -> None:
        """Raises what the device refused: a repeat cannot mend that."""
        for ack in self._acks:
            if ack.of == of and ack.seq == seq and not ack.ok:
                raise DeviceError(f"device {self.name!r} refused {of} {seq}: {ack.error}")

    async def until(self, send: Callable[[int], Awaitable[object]], ready: Callable[[], T | None], what: str) -> T:
        """Send, wait, and send again when a service restarted or nothing moved for ``patience`` seconds."""
        self._acks.clear()
        for attempt in range(self.server.attempts):
            await send(attempt)
            result = await self._wait(ready)
            if result:
                return result
        raise DeviceError(
            f"device {self.name!r}: no answer to {what} after {self.server.attempts} attempts "
            f"({self.server.patience:g} s without a message each)"
        )

    async def _wait(self, ready: Callable[[], T | None]) -> T | None:
        """The result, or None when it is time to repeat."""
        restarts = self._restarts
        async with self._changed:
            while not (result := ready()):
                if self.server.failure is not None:
                    raise self.server.failure
                seen = self._progress
                try:
                    async with asyncio.timeout(self.server.patience):
                        while self._progress == seen and self._restarts == restarts:
                            await self._changed.wait()
                except TimeoutError:
                    return None
                if self._restarts != restarts and all(self._online(name) for name in PATH):
                    return None
            return result

    def _online(self, service: str) -> bool:
        state = self._states.get(service)
        return state is not None and state.online

    async def take(self, message: Message) -> None:
        """Note what arrived, and wake whoever waits for it. Raises ValueError for what is wrong with it."""
        if self._take(message):
            await self.wake()

    async def wake(self) -> None:
        """Have whoever waits look again."""
        async with self._changed:
            self._progress += 1
            self._changed.notify_all()

    def _take(self, message: Message) -> bool:
        match message:
            case State():
                return self._take_state(message)
            case Timing() if message.session == self.server.session:
                if self.on_timing is not None:
                    self.on_timing(message)
            case Ack() if message.session == self.server.session:
                self._acks.append(message)
                return True
            case Inputs() if self._wanted(message):
                assert self.data is not None
                if self.data.images is None:
                    self.data.images = self._keep(message.images).astype(np.uint8, copy=False)
                    self.data.labels = self._labels(message.labels)
                return True
            case Activations() if self._wanted(message):
                assert self.data is not None
                for layer in message.layers:
                    self.data.activations[layer.index] = self._keep(layer.actual).astype(np.int8, copy=False)
                    self.data.repaired += layer.repaired
                    if not layer.faithful:
                        self.data.mismatched_layers.add(layer.index)
                return True
            case Outputs() if self._wanted(message):
                assert self.data is not None
                self.data.outputs = self.server.bus.open(message.outputs).astype(np.int8, copy=True)
                self.data.labels = self._labels(message.labels)
                return True
        return False

    def _take_state(self, state: State) -> bool:
        before = self._states.get(state.service)
        self._states[state.service] = state
        if before is not None and state.online and before.boot != state.boot and state.service in PATH:
            log.warning("service restarted", service=state.service)
            self._restarts += 1
        return True

    def _wanted(self, message: Inputs | Activations | Outputs) -> bool:
        data = self.data
        return data is not None and (message.session, message.iteration, message.attempt) == (
            self.server.session,
            data.iteration,
            data.attempt,
        )

    def _keep(self, tensor: Tensor) -> npt.NDArray[np.generic]:
        """A view into the sender's arena, held until the next pass begins."""
        self._tensors.append(tensor)
        return self.server.bus.open(tensor)

    def _labels(self, labels: Tensor | None) -> npt.NDArray[np.int64] | None:
        return None if labels is None else self.server.bus.open(labels).astype(np.int64, copy=True)

    def reset(self, iteration: int, attempt: int) -> None:
        for tensor in self._tensors:
            self.server.bus.release(tensor)
        self._tensors = []
        self.data = Data(iteration, attempt)


@asynccontextmanager
async def serving(bus: Bus, session: str, *, patience: float = 20.0, attempts: int = 4) -> AsyncIterator[Server]:
    """A Server whose messages are taken in while the block runs; where the bus fails, so does whatever waits for it."""
    server = Server(bus, session, patience=patience, attempts=attempts)
    pump = asyncio.create_task(server.pump())
    try:
        yield server
    finally:
        pump.cancel()
        await asyncio.wait([pump])
