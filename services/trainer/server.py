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

from accelsim import storage
from accelsim.network import Int8, Network, UInt8
from services.bus import Bus, BusError
from services.bus.messages import (
    Ack,
    Activations,
    Deploy,
    FaultRates,
    Forward,
    Inputs,
    Outputs,
    Phase,
    Progress,
    SetMode,
    Stage,
    State,
    Tensor,
    Timing,
)

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
    """``server.*`` of Table I, over an open bus. One session a run; one device at a time.

    Example::

        async with Bus("mqtt://localhost:1883", service="trainer", device="edge-0") as bus:
            async with serving(bus, session="run-1") as server:
                await server.ready()
                await server.deploy_model(network)
                await server.set_mode(Mode.TRAINING, codec="chained", rates=FaultRates(1e-4, 1e-4, 0, 1e-4))
                data = await server.get_data(iteration=0, split="train", samples=range(16))
                data.activations  # {layer index: int8 (N, H, W, C)}, as the device computed them

    Every call raises DeviceError when the device refuses, or is silent for ``patience`` seconds, ``attempts`` times.
    Nothing is lost when a service or the broker restarts in the middle: the pass is repeated and gives the same data.
    """

    def __init__(self, bus: Bus, session: str, *, patience: float = 20.0, attempts: int = 4) -> None:
        self.bus = bus
        self.session = session
        self.patience = patience
        self.attempts = attempts
        self.version = 0
        self._network: Network | None = None
        self._iteration = -1
        self._mode = Mode.INFERENCE
        self._sequence = 0
        self._states: dict[str, State] = {}
        self._acks: list[Ack] = []
        self._data: Data | None = None
        self._tensors: list[Tensor] = []
        self._changed = asyncio.Condition()
        self._progress = 0
        self._restarts = 0
        self.on_timing: Callable[[Timing], None] | None = None
        """Called with every stage's timing event of this session, if set."""

    # ---- Table I ----

    async def set_mode(
        self,
        mode: Mode,
        *,
        rates: FaultRates,
        seed: int,
        codec: Literal["direct", "golden", "chained"] = "chained",
        vote: Literal["bitwise", "median"] = "median",
        replicas: int = 3,
        protected: Sequence[int] = (),
        referee: bool = True,
        exact: bool = True,
    ) -> None:
        """``server.setAIoTMode``: how the device runs from now on. Returns when it has acknowledged."""
        self._sequence += 1
        self._mode = mode
        message = SetMode(
            session=self.session,
            seq=self._sequence,
            mode=mode.value,
            codec=codec,
            vote=vote,
            replicas=replicas,
            referee=referee,
            exact=exact,
            rates=rates,
            seed=seed,
            protected=tuple(protected),
        )

        def send(attempt: int) -> Awaitable[object]:
            return self.bus.publish("down/mode", message, retain=True)

        await self._until(send, lambda: self._acknowledged("mode", message.seq), f"mode {mode}")

    async def deploy_model(
        self, network: Network, *, version: int | None = None, iteration: int = -1, wait: bool = True
    ) -> int:
        """``server.deployModel``: send an int8 network to the device; returns its version, 1 or more.

        With ``wait`` it returns when the device runs it. Without, the next ``get_data`` waits for it, which saves a
        round trip an iteration. ``iteration`` is the one that made the network, for the timing events.
        """
        self.version = self.version + 1 if version is None else version
        self._network, self._iteration = network, iteration
        number = self.version

        if not wait:
            await self._send_model()
            return number

        def send(attempt: int) -> Awaitable[object]:
            return self._send_model()

        await self._until(send, lambda: self._acknowledged("model", number), f"model version {number}")
        return number

    async def get_data(
        self, *, iteration: int, split: Literal["train", "test"], samples: Sequence[int], seed: int | None = None
    ) -> Data:
        """``server.getData``: run these samples on the device in its present mode and collect what it computed.

        ``seed`` stands in for the mode's fault seed. Activations are the receiver's own copies.
        """
        if self._network is None:
            raise DeviceError("get_data: no network was deployed; call deploy_model first")
        wanted = {index for index, _ in self._network.convs()} if self._mode is Mode.TRAINING else set()

        async def send(attempt: int) -> None:
            self._reset(iteration, attempt)
            if attempt > 0:
                log.warning("forward repeated", iteration=iteration, attempt=attempt)
                await self._send_model()
            forward = Forward(
                session=self.session,
                iteration=iteration,
                attempt=attempt,
                mode=self._mode.value,
                version=self.version,
                split=split,
                samples=tuple(int(i) for i in samples),
                seed=seed,
            )
            await self.bus.publish("down/forward", forward)

        def complete() -> Data | None:
            data = self._data
            self._refused("forward", iteration)
            if data is None:
                return None
            if self._mode is Mode.INFERENCE:
                return data if data.outputs is not None else None
            return data if data.images is not None and data.activations.keys() == wanted else None

        return await self._until(send, complete, f"iteration {iteration}")

    async def ready(self, within_s: float = 60.0) -> State:
        """Wait until every service of the pipeline is there; returns the agent's state, with its sample counts.

        Raises DeviceError naming the missing ones.
        """

        def present() -> State | None:
            online = {name for name, state in self._states.items() if state.online}
            # The agent counts its samples only after its birth.
            return self._states["agent"] if online.issuperset(PATH) and self._states["agent"].samples else None

        async with self._changed:
            try:
                async with asyncio.timeout(within_s):
                    while (found := present()) is None:
                        await self._changed.wait()
            except TimeoutError:
                missing = sorted(set(PATH) - {n for n, s in self._states.items() if s.online})
                raise DeviceError(
                    f"device {self.bus.device!r}: no sign of {', '.join(missing)} within {within_s:g} s; "
                    f"are they running, and with --device {self.bus.device}?"
                ) from None
        return found

    # ---- for watching ----

    async def publish_timing(self, stage: Stage, iteration: int, host_s: float) -> None:
        """``event/{stage}`` of a stage that the server itself ran."""
        timing = Timing(session=self.session, stage=stage, iteration=iteration, host_s=host_s)
        await self.bus.publish(f"event/{stage}", timing)

    async def publish_progress(self, phase: Phase, step: int, steps: int, value: float, grad_norm: float) -> None:
        """``event/progress``"""
        progress = Progress(
            session=self.session, phase=phase, step=step, steps=steps, value=value, grad_norm=grad_norm
        )
        await self.bus.publish("event/progress", progress)

    # ---- what the calls wait for ----

    async def _send_model(self) -> None:
        assert self._network is not None
        data = self.bus.share(np.frombuffer(storage.to_bytes(self._network), np.uint8))
        await self.bus.publish(
            "server/model", Deploy(session=self.session, iteration=self._iteration, version=self.version, network=data)
        )

    def _acknowledged(self, of: Literal["mode", "model"], seq: int) -> bool:
        self._refused(of, seq)
        return any(ack.of == of and ack.seq == seq and ack.ok for ack in self._acks)

    def _refused(self, of: str, seq: int) -> None:
        """Raises what the device refused: a repeat cannot mend that."""
        for ack in self._acks:
            if ack.of == of and ack.seq == seq and not ack.ok:
                raise DeviceError(f"device {self.bus.device!r} refused {of} {seq}: {ack.error}")

    async def _until(
        self, send: Callable[[int], Awaitable[object]], ready: Callable[[], T | None], what: str
    ) -> T:
        """Send, wait, and send again when a service restarted or nothing moved for ``patience`` seconds."""
        self._acks.clear()
        for attempt in range(self.attempts):
            await send(attempt)
            result = await self._wait(ready)
            if result:
                return result
        raise DeviceError(
            f"device {self.bus.device!r}: no answer to {what} after {self.attempts} attempts "
            f"({self.patience:g} s without a message each)"
        )

    async def _wait(self, ready: Callable[[], T | None]) -> T | None:
        """The result, or None when it is time to repeat."""
        restarts = self._restarts
        async with self._changed:
            while not (result := ready()):
                seen = self._progress
                try:
                    async with asyncio.timeout(self.patience):
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

    # ---- what arrives ----

    async def pump(self) -> None:
        """Take in messages until cancelled; ``serving`` runs it."""
        names: tuple[str, ...] = ("up/ack", "up/outputs", "server/inputs", "server/activations", "event/+")
        names += tuple(f"state/{name}" for name in PATH)
        await self.bus.subscribe(*names)
        async for topic, message in self.bus:
            try:
                moved = self._take(message)
            except ValueError as error:
                self.bus.reject(topic, str(error))
                continue
            if moved:
                async with self._changed:
                    self._progress += 1
                    self._changed.notify_all()

    def _take(self, message: object) -> bool:
        match message:
            case State():
                return self._take_state(message)
            case Timing() if message.session == self.session:
                if self.on_timing is not None:
                    self.on_timing(message)
            case Ack() if message.session == self.session:
                self._acks.append(message)
                return True
            case Inputs() if self._wanted(message):
                assert self._data is not None
                if self._data.images is None:
                    self._data.images = self._keep(message.images).astype(np.uint8, copy=False)
                    self._data.labels = self._labels(message.labels)
                return True
            case Activations() if self._wanted(message):
                assert self._data is not None
                for layer in message.layers:
                    self._data.activations[layer.index] = self._keep(layer.actual).astype(np.int8, copy=False)
                    self._data.repaired += layer.repaired
                    if not layer.faithful:
                        self._data.mismatched_layers.add(layer.index)
                return True
            case Outputs() if self._wanted(message):
                assert self._data is not None
                self._data.outputs = self.bus.open(message.outputs).astype(np.int8, copy=True)
                self._data.labels = self._labels(message.labels)
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
        data = self._data
        return data is not None and (message.session, message.iteration, message.attempt) == (
            self.session,
            data.iteration,
            data.attempt,
        )

    def _keep(self, tensor: Tensor) -> npt.NDArray[np.generic]:
        """A view into the sender's arena, held until the next pass begins."""
        self._tensors.append(tensor)
        return self.bus.open(tensor)

    def _labels(self, labels: Tensor | None) -> npt.NDArray[np.int64] | None:
        return None if labels is None else self.bus.open(labels).astype(np.int64, copy=True)

    def _reset(self, iteration: int, attempt: int) -> None:
        for tensor in self._tensors:
            self.bus.release(tensor)
        self._tensors = []
        self._data = Data(iteration, attempt)


@asynccontextmanager
async def serving(bus: Bus, session: str, **settings: float) -> AsyncIterator[Server]:
    """A Server whose messages are taken in while the block runs."""
    server = Server(bus, session, **settings)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        pump = tasks.create_task(server.pump())
        yield server
        pump.cancel()
