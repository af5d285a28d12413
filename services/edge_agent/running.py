"""One forward pass of the device over the bus: its segments go to the voter, and the votes that it waits for come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import structlog

from accelsim.accelerators import Accelerator, Timed
from accelsim.engine import Engine
from accelsim.int8.network import Activation, Network, UInt8
from accelsim.timing import Array
from services.bus import Bus, MessageError
from services.bus.messages import Forward, LayerVoted, SetMode, Stage, Timing, Voted
from services.edge_agent.core.answer import answer
from services.edge_agent.core.forward import SIMILARITY, Done, Segment, Votes, advance, execute, similarity
from services.edge_agent.core.modelled import Times, times
from services.edge_agent.core.plan import plan_of, ports_of
from services.edge_agent.table1 import Client

log = structlog.get_logger()
T = TypeVar("T")


def _clock(accelerator: Accelerator) -> float | None:
    """What the accelerator's own clock says, if it has one."""
    return float(accelerator.seconds) if isinstance(accelerator, Timed) else None


@dataclass(frozen=True, slots=True)
class Running:
    """A pass that the server has asked for, and all that it takes. ``votes`` are the voter's answers as they come."""

    bus: Bus
    forward: Forward
    mode: SetMode
    network: Network
    engine: Engine
    accelerator: Accelerator
    array: Array
    votes: asyncio.Queue[Voted] = field(default_factory=asyncio.Queue)

    async def similarity(self) -> dict[int, float]:
        """What the scheme's threshold is compared with: see ``core.forward.similarity``."""
        alone = msgspec.structs.replace(self.forward, iteration=SIMILARITY, mode="inference")
        plan = plan_of(self.mode.scheme, training=True)
        steps = similarity(self.network, self.engine, self.accelerator, plan, self.mode.seed)
        shares = await self._segments(alone, steps, images=0)
        log.info("similarity", shares={i: round(share, 3) for i, share in shares.items()})
        return shares

    async def outputs(self, images: UInt8, direct: frozenset[int]) -> Activation:
        """Run the images (N, H, W, C); the network's outputs (N, 1, 1, C). ``direct``: layers under the threshold."""
        scheme, x = self.mode.scheme, self.network.quantize_images(images)
        given = self.network, self.engine, self.accelerator, x, self.forward.iteration
        training = self.forward.mode == "training"
        steps = execute(*given, plan_of(scheme, training=True, direct=direct)) if training else answer(*given, scheme)
        return await self._segments(self.forward, steps, images=len(x))

    async def _segments(self, of: Forward, steps: Generator[Segment, Votes | None, T], images: int) -> T:
        """Run in a thread, a segment at a time, and send each one while the next is computed.

        Times are published where there are ``images``.
        """
        client = Client(self.bus, of.session)
        number, votes = 0, None
        while True:
            start, clock = time.perf_counter(), _clock(self.accelerator)
            segment = await asyncio.to_thread(advance, steps, votes)
            if isinstance(segment, Done):
                return segment.value
            host = time.perf_counter() - start
            if of.mode == "training" or segment.awaits_vote:
                await client.send_segment(of, number, segment, self.mode.scheme.vote, awaited=segment.awaits_vote)
            votes = await self._votes_on(of, number) if segment.awaits_vote else None
            if images:
                ports = ports_of(self.mode.scheme)
                measured = None if clock is None else (_clock(self.accelerator) or 0.0) - clock
                await self._publish(times(self.network, segment, self.array, ports, measured), number, host)
            segment.done()
            number += 1

    async def _votes_on(self, of: Forward, number: int) -> Votes:
        while True:
            voted = await self.votes.get()
            if (voted.session, voted.iteration, voted.attempt) != (of.session, of.iteration, of.attempt):
                continue
            if voted.segment == number:
                return {layer.index: self._taken(voted, layer) for layer in voted.layers}

    def _taken(self, voted: Voted, layer: LayerVoted) -> Activation:
        """A copy of what a layer goes on with; the voter gets its tensor back."""
        # A TMR pass beside the actual one goes on with the vote, a protected layer with what was voted actual.
        beside = self.mode.scheme.way.reference == "run" and (voted.mode == "training" or voted.iteration == SIMILARITY)
        goes_on = layer.vote if beside else layer.actual
        if goes_on is None:
            raise ValueError(f"edge/voted: layer {layer.index} of segment {voted.segment} came without its vote")
        taken = self.bus.open(goes_on).copy()
        if not self.bus.release(goes_on):
            raise MessageError(f"layer {layer.index} of segment {voted.segment} was taken back while it was being read")
        if beside and voted.mode == "inference":
            self.bus.release(layer.actual)  # the codec will not
        return taken

    async def _publish(self, modelled: Times, number: int, host: float) -> None:
        """``event/forward`` and ``event/tmr`` of a segment; ``host`` is the seconds in which all of it was computed."""
        stages: tuple[tuple[Stage, float, float], ...] = (
            ("forward", modelled.forward, modelled.share),
            ("tmr", modelled.tmr, 1 - modelled.share),
        )
        for stage, device_s, share in stages:
            if device_s == 0:
                continue
            timing = Timing(
                session=self.forward.session,
                stage=stage,
                iteration=self.forward.iteration,
                segment=number,
                host_s=host * share,
                device_s=device_s,
            )
            await self.bus.publish(f"event/{stage}", timing)
