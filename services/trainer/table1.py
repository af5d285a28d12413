"""The server's half of the paper's Table I."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Literal

import structlog

from accelsim.faults import Rates
from accelsim.int8.network import Network
from services.boundary import guarded
from services.bus import Bus, BusError, topics
from services.bus.messages import (
    Forward,
    Iteration,
    LayerRebuilt,
    Phase,
    Progress,
    SetMode,
    Stage,
    State,
    Stopping,
    Timing,
    Votes,
    fresh_nonce,
)
from services.metric import Metric
from services.scheme import CHAINED, Scheme, View
from services.trainer.answers import Data, Deployed
from services.trainer.core.ledger import Row
from services.trainer.patience import Patience
from services.trainer.remote import PASS, PATH, DeviceError, Remote

log = structlog.get_logger()


class Mode(StrEnum):
    """Table I's mode of the AIoT processor."""

    TRAINING = "training"
    INFERENCE = "inference"


class Server:
    """``server.*`` of Table I, over an open bus, for any number of devices. One session a run.

    Every call raises DeviceError when the device refuses, or is silent ``patience.attempts`` times, as long as ``patience`` has
    it. Nothing is lost when a service or the broker restarts in the middle: the pass is repeated and gives the same data.
    docs/api.md has an example to paste.
    """

    def __init__(self, bus: Bus, session: str, patience: Patience) -> None:
        self.bus = bus
        self.session = session
        self.patience = patience
        self._devices: dict[str, Remote] = {}
        self._failure: BusError | None = None

    # ---- Table I ----

    async def set_mode(
        self,
        device: str,
        mode: Mode,
        *,
        rates: Rates,
        seed: int,
        scheme: Scheme = CHAINED,
        known: bytes = b"",
    ) -> None:
        """``server.setAIoTMode``: how the device runs from now on (see ``SetMode``). Returns when it has acknowledged."""
        remote = await self._device(device)
        remote.sequence += 1
        message = SetMode(
            session=self.session,
            seq=remote.sequence,
            mode=mode.value,
            rates=rates,
            seed=seed,
            scheme=scheme,
            nonce=fresh_nonce(),
            known=known,
        )

        def send(attempt: int) -> Awaitable[object]:
            return remote.send_mode(message)

        await remote.until(send, lambda: remote.acknowledged("mode", message.seq), "mode", mode)

    async def deploy_model(
        self, device: str, network: Network, *, version: int | None = None, iteration: int = -1, wait: bool = True
    ) -> int:
        """``server.deployModel``: send an int8 network to the device; returns its version, 1 or more.

        With ``wait`` it returns when the device runs it. Without, the next ``get_data`` waits for it, which saves a
        round trip an iteration. ``iteration`` is the one that made the network, for the timing events.
        """
        known = await self._device(device)
        if version is None:
            version = 1 if known.deployed is None else known.deployed.version + 1
        deployed = Deployed(network, version, iteration)
        if not wait:
            await known.send_model(deployed)
            return version

        def send(attempt: int) -> Awaitable[object]:
            return known.send_model(deployed)

        await known.until(send, lambda: known.acknowledged("model", version), "model version", version)
        return version

    async def get_data(
        self,
        device: str,
        *,
        iteration: int,
        split: Literal["train", "test"],
        samples: Sequence[int],
        seed: int | None = None,
        rates: Rates | None = None,
        view: View | None = None,
        reliable: bool = False,
        images: bytes = b"",
    ) -> Data:
        """``server.getData``: run these samples on the device in its present mode and collect what it computed.

        ``seed`` and ``rates`` stand in for the mode's; ``view`` has the device change the images first, and those of the Data
        are then the changed ones; ``reliable`` has an inference run on the general-purpose processor;
        ``images`` are run in place of the device's own (see ``Forward``). Images and activations
        are views into shared memory, good until the next ``get_data`` of that device.
        """
        known = await self._device(device)
        mode, deployed = known.mode, known.deployed
        if deployed is None:
            raise DeviceError(f"device {device!r}: no network was deployed; call deploy_model first")
        if mode is None:
            raise DeviceError(f"device {device!r}: no mode was set; call set_mode first")
        training = mode.mode == "training"
        wanted = {index for index, _ in deployed.network.convs()}

        first = int(known.unanswered)  # a repeat says all again
        nonce = fresh_nonce()

        async def send(attempt: int) -> None:
            forward = Forward(
                session=self.session,
                iteration=iteration,
                attempt=attempt + first,
                mode=mode.mode,
                version=deployed.version,
                split=split,
                samples=tuple(int(i) for i in samples),
                seed=seed,
                rates=rates,
                view=view,
                nonce=nonce,
                reliable=reliable,
                images=images,
            )
            await known.send_forward(forward, mode, deployed)

        def complete() -> Data | None:
            known.refused("forward", iteration)
            known.refused("model", deployed.version)
            data = known.data
            if data is None or (data.outputs is None and not training):
                return None
            if training and (data.images is None or data.activations.keys() != wanted):
                return None
            return data

        known.unanswered = True
        found = await known.until(send, complete, PASS, iteration)
        known.unanswered = False
        return found

    # ---- beside it ----

    async def ready(self, device: str, within_s: float = 60.0) -> State:
        """Wait until every service of the pipeline is there; returns the agent's state, with its sample counts.

        Raises DeviceError naming the missing ones.
        """
        return await (await self._device(device)).ready(within_s)

    async def on_events(self, device: str, timing: Callable[[Timing], None], votes: Callable[[Votes], None]) -> None:
        """Have these called with every stage's timing of this session, and with what was voted."""
        remote = await self._device(device)
        remote.on_timing, remote.on_votes = timing, votes

    def stopped_by(self, device: str) -> str:
        """Who has asked, with ``server/stop``, for this session of a device to be stopped; empty while nobody has."""
        return self._devices[device].stopped_by if device in self._devices else ""

    async def publish_stopped(self, device: str) -> None:
        """``event/stopping``: what was asked for with ``server/stop`` is done, this session ends."""
        stopping = Stopping(session=self.session, by=self.stopped_by(device), ended=True)
        await self.bus.publish(self.bus.topic("event/stopping", device), stopping)

    async def publish_timing(self, device: str, stage: Stage, iteration: int, host_s: float) -> Timing:
        """``event/{stage}`` of a stage that the server itself ran; the message."""
        timing = Timing(session=self.session, stage=stage, iteration=iteration, host_s=host_s)
        await self.bus.publish(self.bus.topic(f"event/{stage}", device), timing)
        return timing

    async def publish_iteration(self, device: str, row: Row, steps: int, data: Data) -> None:
        """``event/iteration``: what an iteration of so many came to, with its layers as ``data`` has them."""
        remote = await self._device(device)
        layers = tuple(
            LayerRebuilt(layer.index, data.activations[layer.index].size, layer.repaired, layer.faithful)
            for layer in row.layers
        )
        iteration = Iteration(
            session=self.session,
            iteration=row.iteration,
            steps=steps,
            loss=row.loss,
            accuracy=row.accuracy,
            grad_norm=row.grad_norm,
            wall_s=row.wall_s,
            attempts=row.attempts,
            input_bytes=row.input_bytes,
            model_bytes=remote.model_bytes,
            network="" if remote.deployed is None else remote.deployed.network.name[:64],
            layers=layers[:4096],
        )
        await self.bus.publish(self.bus.topic("event/iteration", device), iteration)

    async def publish_progress(
        self,
        device: str,
        phase: Phase,
        step: int,
        steps: int,
        value: float,
        norm: float = 0.0,
        faults: bool = True,
        metric: Metric = "top1",
    ) -> None:
        """``event/progress``"""
        progress = Progress(
            session=self.session,
            phase=phase,
            step=step,
            steps=steps,
            value=value,
            grad_norm=norm,
            faults=faults,
            metric=metric,
        )
        await self.bus.publish(self.bus.topic("event/progress", device), progress)

    async def pump(self) -> None:
        """Take in messages until cancelled; ``serving`` runs it. A message that is wrong in any way is counted and dropped."""
        try:
            async for topic, message in self.bus:
                device = self._devices.get(topics.parse(topic).device)
                if device is not None:
                    await guarded(self.bus, topic, message, device.take)
        except BusError as error:
            self._failure = error
            for device in self._devices.values():
                await device.fail(error)

    async def _device(self, name: str) -> Remote:
        if name not in self._devices:
            self._devices[name] = Remote(self.bus, self.session, name, self.patience)
            self._devices[name].failure = self._failure
            planes = ("up/ack", "up/outputs", "server/inputs", "server/activations", "server/stop", "event/+")
            short = (*planes, *(f"state/{service}" for service in PATH))
            await self.bus.subscribe(*(self.bus.topic(topic, name) for topic in short))
        return self._devices[name]


@asynccontextmanager
async def serving(bus: Bus, session: str, *, patience: float = 20.0, attempts: int = 4) -> AsyncIterator[Server]:
    """A Server whose messages are taken in while the block runs; where the bus fails, so does whatever waits for it.

    ``patience`` is in seconds of silence, after which a device is asked again, ``attempts`` times in all, each with more
    time than the one before (``Patience``).
    """
    server = Server(bus, session, Patience(patience, attempts))
    pump = asyncio.create_task(server.pump())
    try:
        yield server
    finally:
        pump.cancel()
        await asyncio.wait([pump])
