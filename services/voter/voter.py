"""TMR: the vote over a layer's replicas, for the codec's increments and for protected layers alike."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from services.bus import Bus
from services.bus.messages import LayerReplicas, LayerVoted, Replicas, Timing, Voted
from services.voter.vote import vote


async def serve(bus: Bus) -> None:
    """Answer each ``edge/replicas`` with one ``edge/voted``, until cancelled."""
    await bus.subscribe("edge/replicas")
    async for _, message in bus:
        if isinstance(message, Replicas):
            await _answer(bus, message)


async def _answer(bus: Bus, message: Replicas) -> None:
    start = time.perf_counter()
    layers = tuple([await _vote(bus, layer, message) for layer in message.layers])
    host = time.perf_counter() - start
    voted = Voted(
        session=message.session,
        iteration=message.iteration,
        attempt=message.attempt,
        segment=message.segment,
        mode=message.mode,
        layers=layers,
    )
    await bus.publish("edge/voted", voted)
    if any(layer.vote is not None for layer in layers):
        timing = Timing(
            session=message.session, stage="tmr", iteration=message.iteration, segment=message.segment, host_s=host
        )
        await bus.publish("event/tmr", timing)


async def _vote(bus: Bus, layer: LayerReplicas, message: Replicas) -> LayerVoted:
    """The layer's vote, and its actual output passed on by reference: nothing but the vote is copied."""
    training = message.mode == "training"
    actual = layer.replicas[0] if layer.actual is None else layer.actual
    voted = None
    if len(layer.replicas) > 1:
        replicas = [bus.open(tensor).astype(np.int8, copy=False) for tensor in layer.replicas]
        winner = await asyncio.to_thread(vote, replicas, message.vote)
        agent_waits = layer.protected or layer.actual is not None
        voted = bus.share(winner, readers=training + agent_waits)
        if layer.protected:
            actual = voted
    for tensor in layer.replicas:
        bus.release(tensor)
    if layer.actual is not None:
        bus.release(layer.actual)
    return LayerVoted(index=layer.index, actual=actual, vote=voted)
