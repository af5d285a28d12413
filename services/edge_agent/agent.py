"""The device: takes commands from the server, runs the accelerator, hands every layer's outputs to the voter."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import structlog

from accelsim.accelerators import Accelerator
from accelsim.datasets import Dataset
from accelsim.engine import Engine, shared
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Conv, Int8, Network
from accelsim.timing import Array, LayerTiming, layer_timing
from services.bus import Bus, MessageError
from services.bus.messages import Deploy, Forward, SetMode, Timing, Voted
from services.edge_agent.core import referee
from services.edge_agent.core.camera import photograph
from services.edge_agent.core.forward import Executed, Plan, Segment, Votes, execute
from services.edge_agent.table1 import Client
from services.scheme import Scheme

log = structlog.get_logger()

SIMILARITY = 1 << 29
"""Iteration number of the golden codec's offline run: no training or evaluation has it."""

NewAccelerator = Callable[[Rates, int], Accelerator]
"""(fault rates, seed) to an accelerator without a network."""


@dataclass(slots=True)
class Loaded:
    """The network that the device runs now, and what runs it."""

    session: str
    version: int
    network: Network
    engine: Engine
    accelerators: dict[tuple[Rates, int], Accelerator]


class Agent:
    """State of the device between messages. ``serve`` is its whole life."""

    def __init__(self, bus: Bus, data: Dataset, new_accelerator: NewAccelerator, array: Array, path: str) -> None:
        self.bus = bus
        self.data = data
        self.new_accelerator = new_accelerator
        self.array = array
        self.path = path
        self.mode: SetMode | None = None
        self.loaded: Loaded | None = None
        self.pending: Forward | None = None
        self.run: asyncio.Task[None] | None = None
        self.votes: asyncio.Queue[Voted] = asyncio.Queue()
        self.similarity: dict[str, Any] = {}
        """Of the golden codec: the session that it was measured in, and each layer's share of outputs equal to the vote."""

    async def serve(self) -> None:
        """Answer messages until cancelled."""
        await self.bus.subscribe("down/mode", "down/forward", "edge/model", "edge/voted")
        samples = {"train": len(self.data.train_images), "test": len(self.data.test_images)}
        await self.bus.announce(samples=samples)
        try:
            async for _, message in self.bus:
                match message:
                    case SetMode():
                        await self._set_mode(message)
                    case Deploy():
                        await self._load(message)
                    case Forward():
                        self.pending = message
                        await self._start_pending()
                    case Voted():
                        self.votes.put_nowait(message)
        finally:
            await self._stop_run()

    async def _set_mode(self, message: SetMode) -> None:
        if self.mode is None or self.mode.session != message.session:
            log.info("session", session=message.session, mode=message.mode)
        self.mode = message
        await Client(self.bus, message.session).send_ack("mode", message.seq, version=self._version())

    def _version(self) -> int:
        return self.loaded.version if self.loaded else 0

    async def _load(self, message: Deploy) -> None:
        """Load a network; every accelerator is made anew for it at its next run."""
        client = Client(self.bus, message.session)
        if self.loaded is not None and (self.loaded.session, self.loaded.version) == (message.session, message.version):
            # A repeat, and a pass on that very model may be running already: it must not be stopped for it.
            self.bus.release(message.network)
            await client.send_ack("model", message.version, version=message.version)
            return
        try:
            network = storage.from_bytes(self.bus.open(message.network).tobytes())
            await self._stop_run()
            self.loaded = None  # a device has little room for two engines, and nobody waits for a pass on the old one
            engine = await asyncio.to_thread(shared, network, self.path)
        except MessageError as error:
            self.bus.reject("edge/model", str(error))  # the server repeats it
            return
        except ValueError as error:
            log.error("model refused", version=message.version, error=str(error))
            await client.send_ack("model", message.version, version=self._version(), error=str(error))
            return
        finally:
            self.bus.release(message.network)
        self.loaded = Loaded(message.session, message.version, network, engine, {})
        await self.bus.announce(version=message.version)
        await client.send_ack("model", message.version, version=message.version)
        await self._start_pending()

    async def _start_pending(self) -> None:
        """Run the forward that waits, if its network and mode are here. A newer forward replaces a running one."""
        forward = self.pending
        if forward is None or self.loaded is None or self.mode is None or self.mode.session != forward.session:
            return
        if forward.version != self.loaded.version:
            return  # its model is on its way, or the server repeats both
        self.pending = None
        await self._stop_run()
        self.bus.withdraw_all()
        self.run = asyncio.create_task(self._run(forward, self.mode, self.loaded))

    async def _stop_run(self) -> None:
        if self.run is not None and not self.run.done():
            self.run.cancel()
            await asyncio.wait([self.run])
        self.run = None
        self.votes = asyncio.Queue()

    async def _run(self, forward: Forward, mode: SetMode, loaded: Loaded) -> None:
        """A pass that fails is the server's to know of: it names the reason and the device stays up."""
        client = Client(self.bus, forward.session)
        try:
            await self._forward(client, forward, mode, loaded)
        except MessageError as error:
            self.bus.reject("edge/voted", str(error))  # the server repeats the pass
        except Exception as error:
            log.exception("forward failed", iteration=forward.iteration)
            reason = f"{type(error).__name__}: {error}"
            await client.send_ack("forward", forward.iteration, version=loaded.version, error=reason)

    async def _forward(self, client: Client, forward: Forward, mode: SetMode, loaded: Loaded) -> None:
        images, labels = (
            (self.data.train_images, self.data.train_labels)
            if forward.split == "train"
            else (self.data.test_images, self.data.test_labels)
        )
        if not forward.samples or max(forward.samples) >= len(images) or min(forward.samples) < 0:
            error = f"samples: {forward.split} has {len(images)} images, asked for {list(forward.samples)[:8]}"
            await client.send_ack("forward", forward.iteration, version=loaded.version, error=error)
            return
        chosen = list(forward.samples)
        batch, truth = images[chosen], labels[chosen]
        files: list[bytes] = []
        if mode.scheme.jpeg:
            files, batch = await asyncio.to_thread(photograph, batch, mode.scheme.jpeg)
        training = forward.mode == "training"
        if training:
            await client.send_inputs(forward, batch, truth, files)
        plan = _plan(mode.scheme, training)
        if plan.golden and mode.scheme.theta > 0:
            plan = dataclasses.replace(plan, direct=await self._dissimilar(client, forward, mode, loaded))
        x = loaded.network.quantize_images(batch)
        accelerator = self._accelerator(loaded, mode, forward)
        outputs = await self._segments(client, forward, mode, loaded, accelerator, x, plan)
        if not training:
            await client.send_outputs(forward, outputs, truth)

    async def _dissimilar(self, client: Client, forward: Forward, mode: SetMode, loaded: Loaded) -> frozenset[int]:
        """Layers under the golden codec's threshold: measured once a session, on one random input (section V.C)."""
        if self.similarity.get("session") != forward.session:
            random = np.random.default_rng(mode.seed)
            x = random.integers(-128, 128, (1, *loaded.network.input_shape), np.int8)
            alone = msgspec.structs.replace(forward, iteration=SIMILARITY, mode="inference")
            plan = _plan(mode.scheme, training=True)
            steps = execute(loaded.network, loaded.engine, self._accelerator(loaded, mode, forward), x, SIMILARITY, plan)
            shares: dict[int, float] = {}
            votes: Votes | None = None
            while not isinstance(segment := await asyncio.to_thread(_advance, steps, votes), _Done):
                number = segment.layers[0].index
                await client.send_segment(alone, number, segment, mode.scheme.vote, awaited=True)
                votes = await self._await_votes(alone, number, golden=True)
                shares |= {e.index: float(np.mean(e.actual == votes[e.index])) for e in segment.layers}
            self.similarity = {"session": forward.session, "shares": shares}
            log.info("similarity", shares={i: round(share, 3) for i, share in shares.items()})
        return frozenset(i for i, share in self.similarity["shares"].items() if share < mode.scheme.theta)

    def _accelerator(self, loaded: Loaded, mode: SetMode, forward: Forward) -> Accelerator:
        key = (mode.rates, mode.seed if forward.seed is None else forward.seed)
        if key not in loaded.accelerators:
            accelerator = self.new_accelerator(mode.rates, key[1])
            accelerator.load(loaded.network)
            loaded.accelerators.clear()
            loaded.accelerators[key] = accelerator
        return loaded.accelerators[key]

    async def _segments(
        self,
        client: Client,
        forward: Forward,
        mode: SetMode,
        loaded: Loaded,
        accelerator: Accelerator,
        x: Int8,
        plan: Plan,
    ) -> Int8:
        """Run the pass in a thread, a segment at a time, and send each one while the next is computed."""
        steps = execute(loaded.network, loaded.engine, accelerator, x, forward.iteration, plan)
        number, votes = 0, None
        while True:
            start = time.perf_counter()
            segment = await asyncio.to_thread(_advance, steps, votes)
            if isinstance(segment, _Done):
                return segment.outputs
            host = time.perf_counter() - start
            if forward.mode == "training" or segment.awaits_vote:
                await client.send_segment(forward, number, segment, mode.scheme.vote, awaited=segment.awaits_vote)
            votes = await self._await_votes(forward, number, plan.golden is not None) if segment.awaits_vote else None
            await self._publish_times(forward, loaded.network, number, segment, host, len(x))
            segment.done()
            number += 1

    async def _await_votes(self, forward: Forward, number: int, golden: bool) -> Votes:
        while True:
            voted = await self.votes.get()
            if (voted.iteration, voted.attempt, voted.segment) == (forward.iteration, forward.attempt, number):
                votes: Votes = {}
                for layer in voted.layers:
                    # The golden codec's TMR pass goes on with the vote, a protected layer with what was voted actual.
                    goes_on = layer.vote if golden else layer.actual
                    if goes_on is None:
                        raise ValueError(f"edge/voted: layer {layer.index} of segment {number} came without its vote")
                    votes[layer.index] = self.bus.open(goes_on).copy()
                    if not self.bus.release(goes_on):
                        raise MessageError(f"layer {layer.index} of segment {number} was taken back while it was being read")
                    if golden and forward.mode == "inference":
                        self.bus.release(layer.actual)  # the codec will not
                return votes

    async def _publish_times(
        self, forward: Forward, network: Network, number: int, segment: Segment, host: float, batch: int
    ) -> None:
        """Modelled accelerator time of the actual run (FP) and of all further executions (TMR), beside the host's."""
        executions = [e.executions for e in segment.layers]
        modelled = [self._timing(network, e.index, batch, n) for e, n in zip(segment.layers, executions, strict=True)]
        # The host computes all executions at once; the actual one is charged its share.
        share = len(executions) / sum(executions)
        once = sum(t.forward_s + t.write_back_s for t in modelled)
        further = sum(t.tmr_s for t in modelled) + sum(_referee_seconds(network, e) for e in segment.layers)
        for stage, device_s, part in (("forward", once, share), ("tmr", further, 1 - share)):
            if device_s == 0:
                continue
            timing = Timing(
                session=forward.session,
                stage=stage,  # type: ignore[arg-type]
                iteration=forward.iteration,
                segment=number,
                host_s=host * part,
                device_s=device_s,
            )
            await self.bus.publish(f"event/{stage}", timing)

    def _timing(self, network: Network, index: int, batch: int, executions: int) -> LayerTiming:
        conv = network.layers[index]
        assert isinstance(conv, Conv)
        shape = network.shape_of(conv.inputs[0])
        return layer_timing(index, conv, shape, self.array, batch=batch, executions=executions)


@dataclass(slots=True)
class _Done:
    outputs: Int8


def _advance(steps: object, votes: Votes | None) -> Segment | _Done:
    """One ``send``; a generator's return value cannot cross a thread as StopIteration."""
    try:
        return steps.send(votes)  # type: ignore[attr-defined, no-any-return]
    except StopIteration as stop:
        return _Done(stop.value)


def _referee_seconds(network: Network, executed: Executed) -> float:
    """Modelled time of the general-purpose processor on the elements that it settled."""
    layer = network.layers[executed.index]
    if executed.settled is None or not isinstance(layer, Conv):
        return 0.0
    return referee.seconds(executed.settled, layer.weight[0].size)


def _plan(scheme: Scheme, training: bool) -> Plan:
    protected = frozenset(scheme.protected)
    if not training or scheme.codec == "direct":
        return Plan(replicas=1, protected=protected)
    golden = scheme.codec == "golden"
    return Plan(
        replicas=scheme.replicas,
        protected=protected,
        golden=scheme.redundancy if golden else None,
        referee=scheme.referee and not golden,
        longest=referee.short(scheme.uplink_bits_per_s) if scheme.uplink_bits_per_s else referee.SHORT,
    )
