"""The device: takes commands from the server, runs the accelerator, hands every layer's outputs to the voter."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import structlog

from accelsim.accelerators import Accelerator, Factory, vote_at
from accelsim.datasets import Dataset
from accelsim.engine import Engine, shared
from accelsim.faults import Rates, chip
from accelsim.faults.permanent import FaultMap
from accelsim.faults.worn import exact
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.timing import Array
from services.boundary import answer, detail, trace
from services.bus import Bus, BusError, MessageError
from services.bus.messages import Deploy, Forward, Message, SetMode, Voted
from services.codec.core import inputs
from services.codec.core.server_end import MAX_BATCH
from services.edge_agent.core.camera import photograph
from services.edge_agent.core.plan import ports_of, thresholded
from services.edge_agent.running import Running
from services.edge_agent.table1 import Client
from services.known import known_faults
from services.scheme import Port, Scheme, check
from services.views import seen

log = structlog.get_logger()


class Device(NamedTuple):
    """What a device is made of."""

    data: Dataset
    """What it photographs."""
    accelerator: Factory
    array: Array
    """Whose time is modelled."""
    path: str
    """Of the exact engine."""
    max_ber: float = 1.0
    """At any site: a command that asks for more is refused."""


class Loaded(NamedTuple):
    """The network that the device runs now."""

    version: int
    network: Network
    engine: Engine


@dataclass(slots=True)
class Session:
    """All that the device knows of one run. Another run's first command puts a new one in its place."""

    name: str = ""
    loaded: Loaded | None = None
    accelerator: Accelerator | None = None
    """Of the loaded network, under ``faults``, with its votes at these ports."""
    faults: tuple[Rates, int, tuple[Port, ...]] = (Rates(), 0, ())
    similarity: dict[int, float] | None = None
    """Each layer's share of outputs equal to the vote, measured once where the scheme has a threshold."""

    @property
    def version(self) -> int:
        """Of the network loaded, 0 for none."""
        return self.loaded.version if self.loaded else 0


class Agent:
    """The device between messages. ``serve`` is its whole life."""

    def __init__(self, bus: Bus, device: Device) -> None:
        self.bus = bus
        self.device = device
        self.session = Session()
        self.mode: SetMode | None = None
        """The newest. What is still on its way of the run before must not lose it, so it is no part of a session."""
        self.told = Rates()
        """The last rates that were logged."""
        self.pending: Forward | None = None
        """The newest forward, until its network and mode are here."""
        self.running: Running | None = None
        self.task: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Answer messages until cancelled. One that is wrong in any way is counted and dropped; the next one is taken."""
        await self.bus.subscribe("down/mode", "down/forward", "edge/model", "edge/voted")
        data = self.device.data
        samples = {"train": len(data.train_images), "test": len(data.test_images)}
        await self.bus.announce(samples=samples, data=data.digest())
        try:
            await answer(self.bus, self._take)
        finally:
            await self._stop()

    async def _take(self, message: Message) -> None:
        match message:
            case SetMode():
                await self._enter(message.session)
                try:
                    self._known(message)
                    self._bounded(message.rates)
                except ValueError as error:
                    await self._client().send_ack(
                        "mode", message.seq, nonce=message.nonce, version=self.session.version, error=str(error)
                    )
                    raise
                self._told(message.rates)
                self.mode = message
                await self._client().send_ack("mode", message.seq, nonce=message.nonce, version=self.session.version)
                await self._start_pending()
            case Deploy():
                await self._enter(message.session)
                await self._load(message)
                await self._start_pending()
            case Forward():
                if self.pending is not None:
                    self._give_up(self.pending)
                self.pending = message
                await self._start_pending()
            case Voted():
                if self.running is not None:
                    self.running.votes.put_nowait(message)

    async def _enter(self, name: str) -> None:
        """Go on in a session; where it is another one nothing of the one before is left."""
        if self.session.name != name:
            log.info("session", session=name)
            await self._stop()
            self.session = Session(name)

    def _client(self) -> Client:
        return Client(self.bus, self.session.name)

    async def _load(self, message: Deploy) -> None:
        """Load a network, and say what became of that. The accelerator is made anew for it at its next run."""
        session = self.session
        if session.version == message.version:
            # A repeat, and a pass on that very model may be running already: it must not be stopped for it.
            self.bus.release(message.network)
            await self._client().send_ack("model", message.version, version=message.version)
            return
        try:
            network = storage.from_bytes(self.bus.open(message.network).tobytes())
            await self._stop()
            # A device has little room for two engines, and nobody waits for a pass on the old one.
            session.loaded = session.accelerator = None
            engine = await asyncio.to_thread(shared, network, self.device.path)
        except MessageError:
            raise  # the server repeats it
        except Exception as error:
            log.error("model refused", version=message.version, error=str(error))
            await self._client().send_ack("model", message.version, version=session.version, error=_reason(error))
            return
        finally:
            self.bus.release(message.network)
        session.loaded = Loaded(message.version, network, engine)
        detail("model loaded", version=message.version)
        await self.bus.announce(version=message.version)
        await self._client().send_ack("model", message.version, version=message.version)

    async def _start_pending(self) -> None:
        """Run the forward that waits, if its network and mode are here. A newer forward replaces a running one."""
        forward, mode, session = self.pending, self.mode, self.session
        if forward is None or mode is None or session.loaded is None:
            return
        if not forward.session == mode.session == session.name:
            return
        if forward.version != session.version:
            return  # its model is on its way, or the server repeats both
        self.pending = None
        await self._stop()
        self.bus.withdraw_all()
        self.task = asyncio.create_task(self._run(forward, mode, session.loaded))

    def _give_up(self, forward: Forward) -> None:
        """Say why a forward that waited was never begun."""
        mode = "none" if self.mode is None else f"of session {self.mode.session!r}"
        self.bus.reject(
            "down/forward",
            f"iteration {forward.iteration}, attempt {forward.attempt} was never begun: it needs version {forward.version} of "
            f"session {forward.session!r}; here is version {self.session.version} of {self.session.name!r}, the mode is {mode}",
        )

    async def _stop(self) -> None:
        """Stop the pass that runs, if any."""
        if self.task is not None and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
        self.task = self.running = None

    async def _run(self, forward: Forward, mode: SetMode, loaded: Loaded) -> None:
        """A pass that fails is the server's to know of: it names the reason and the device stays up."""
        # The message that it was started by may be the model it waited for, of the iteration before.
        structlog.contextvars.bind_contextvars(trace=trace(forward))
        client = self._client()
        detail("forward", mode=forward.mode, attempt=forward.attempt, version=forward.version)
        try:
            await self._forward(client, forward, mode, loaded)
        except MessageError as error:
            self.bus.reject("edge/voted", str(error))  # the server repeats the pass
        except BusError as error:
            log.warning("forward stopped", iteration=forward.iteration, error=str(error))
        except Exception as error:
            log.error("forward failed", iteration=forward.iteration, exc_info=not isinstance(error, ValueError))
            await client.send_ack(
                "forward", forward.iteration, nonce=forward.nonce, version=loaded.version, error=_reason(error)
            )

    async def _forward(self, client: Client, forward: Forward, mode: SetMode, loaded: Loaded) -> None:
        check(mode.scheme, loaded.network)
        data = self.device.data
        of_split = {"train": (data.train_images, data.train_labels), "test": (data.test_images, data.test_labels)}
        images, labels = of_split[forward.split]
        chosen = list(forward.samples)
        if forward.images:
            if not 0 < len(chosen) <= MAX_BATCH or mode.scheme.jpeg:
                raise ValueError(f"images: 1 to {MAX_BATCH} are taken, as they are; got {len(chosen)}, JPEG {mode.scheme.jpeg}")
            images = inputs.decode(forward.images, len(chosen), loaded.network.input_shape)
            labels, chosen = np.zeros(len(chosen), np.int64), list(range(len(chosen)))
        if not chosen or max(chosen) >= len(images) or min(chosen) < 0:
            raise ValueError(f"samples: {forward.split} has {len(images)} images, asked for {chosen[:8]}")
        if forward.reliable and forward.mode == "training":
            raise ValueError("reliable: the general-purpose processor runs in inference mode alone")
        batch, truth = images[chosen], labels[chosen] if data.kind == "classes" else None
        files: list[bytes] = []
        if mode.scheme.jpeg:
            files, batch = await asyncio.to_thread(photograph, batch, mode.scheme.jpeg)
        training = forward.mode == "training"
        if training:
            await client.send_inputs(forward, batch, truth, files)
        batch = seen(batch, forward.view)
        if forward.reliable:
            x = loaded.network.quantize_images(batch)
            outputs = (await asyncio.to_thread(loaded.engine.run, x))[-1]
            await client.send_outputs(forward, outputs, truth)
            return
        accelerator = await self._accelerator(loaded.network, mode, forward)
        referee = await asyncio.to_thread(exact, loaded.network, self.device.path, await asyncio.to_thread(self._known, mode))
        self.running = Running(self.bus, forward, mode, loaded.network, referee, accelerator, self.device.array)
        direct: frozenset[int] = frozenset()
        if training and thresholded(mode.scheme):
            if self.session.similarity is None:
                self.session.similarity = await self.running.similarity()
            direct = frozenset(i for i, share in self.session.similarity.items() if share < mode.scheme.theta)
        outputs = await self.running.outputs(batch, direct)
        if not training:
            await client.send_outputs(forward, outputs, truth)

    def _known(self, mode: SetMode) -> FaultMap | None:
        """The permanent faults that the server predicts with. Raises ValueError where they are of another array."""
        known = known_faults(mode.known, "down/mode: known")
        return None if known is None else chip.on(known, self.device.array, f"down/mode: known: {known.name or 'a map'}")

    def _bounded(self, rates: Rates) -> None:
        """Raises ValueError where more errors are asked for than this device makes."""
        for site, rate in msgspec.structs.asdict(rates).items():
            if rate > self.device.max_ber:
                raise ValueError(f"rates: {site} is {rate!r}; this device makes at most {self.device.max_ber!r} (--max-ber)")

    def _told(self, rates: Rates) -> None:
        """Say which errors are made from now on, where they are others than before."""
        if rates != self.told:
            self.told = rates
            log.info("error rates", **msgspec.structs.asdict(rates))

    async def _accelerator(self, network: Network, mode: SetMode, forward: Forward) -> Accelerator:
        """The one of these faults, made when they change."""
        session = self.session
        rates = mode.rates if forward.rates is None else forward.rates
        self._bounded(rates)
        self._told(rates)
        faults = (rates, mode.seed if forward.seed is None else forward.seed, mode.scheme.ports)
        if session.accelerator is None or session.faults != faults:
            session.accelerator = None
            session.accelerator, session.faults = await asyncio.to_thread(self._made, network, mode.scheme, *faults[:2]), faults
        return session.accelerator

    def _made(self, network: Network, scheme: Scheme, rates: Rates, seed: int) -> Accelerator:
        accelerator = self.device.accelerator(rates, seed, self.bus.device)
        accelerator.load(network)
        vote_at(accelerator, ports_of(scheme))
        return accelerator


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
