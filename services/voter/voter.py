"""TMR: the vote over a layer's replicas, for the codec's increments and for protected layers alike."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from services.bus import Bus
from services.bus.messages import LayerReplicas, LayerVoted, Replicas, Timing, Voted
from services.voter.core.vote import settled_vote, vote

TMR = 3


async def serve(bus: Bus) -> None:
    """Answer each ``edge/replicas`` with one ``edge/voted``, until cancelled."""
    await bus.subscribe("edge/replicas")
    current = ("", 0, 0)
    async for _, message in bus:
        if isinstance(message, Replicas):
            if current != (current := (message.session, message.iteration, message.attempt)):
                bus.withdraw_all()  # of a pass that is over, or was given up
            try:
                await _answer(bus, message)
            except ValueError as error:
                bus.reject("edge/replicas", str(error))


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
        timing = Timing(session=message.session, stage="tmr", iteration=message.iteration, segment=message.segment, host_s=host)
        await bus.publish("event/tmr", timing)


async def _vote(bus: Bus, layer: LayerReplicas, message: Replicas) -> LayerVoted:
    """The layer's vote, and its actual output passed on by reference: nothing but the vote is copied."""
    if not layer.replicas:
        raise ValueError(f"layer {layer.index} came without replicas")
    training = message.mode == "training"
    actual = layer.replicas[0] if layer.actual is None else layer.actual
    voted = None
    if len(layer.replicas) > 1 or layer.values is not None:
        replicas = [bus.open(tensor).astype(np.int8, copy=False) for tensor in layer.replicas]
        positions = None if layer.positions is None else bus.open(layer.positions)
        values = None if layer.values is None else bus.open(layer.values)
        winner = await asyncio.to_thread(settled_vote, replicas, message.vote, positions, values)
        if layer.protected:
            # In TMR the device has three executions, however many more were run to know its errors.
            tmr = winner
            if len(replicas) != TMR or values is not None:
                tmr = await asyncio.to_thread(vote, replicas[:TMR], message.vote)
            await bus.room(tmr.nbytes)
            actual = bus.share(tmr, readers=1 + training)
        readers = (training and not layer.direct) + layer.awaited
        if readers:
            await bus.room(winner.nbytes)
            voted = bus.share(winner, readers=readers)
    read = (*layer.replicas, layer.actual, layer.positions, layer.values)
    intact = [bus.release(tensor) for tensor in read if tensor is not None]
    if not all(intact):
        raise ValueError(f"layer {layer.index} was taken back while it was being voted on")
    return LayerVoted(index=layer.index, actual=actual, vote=voted, direct=layer.direct)
