"""TMR: the vote over a layer's replicas, for the codec's increments and for protected layers alike."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from services.boundary import answer
from services.bus import Bus
from services.bus.messages import LayerReplicas, LayerVoted, LayerVotes, Message, Replicas, Timing, Voted, Votes
from services.voter.core.ballot import Ballot, Tally, count, tally

FEW_BYTES: Final = 1 << 20
"""Replicas of fewer bytes in all are voted on in less time than it takes to have a thread do it."""


async def serve(bus: Bus) -> None:
    """Answer each ``edge/replicas`` with one ``edge/voted``, until cancelled."""
    await bus.subscribe("edge/replicas")
    current = ("", 0, 0)

    async def take(message: Message) -> None:
        nonlocal current
        if isinstance(message, Replicas):
            if current != (current := (message.session, message.iteration, message.attempt)):
                bus.withdraw_all()  # of a pass that is over, or was given up
            await _answer(bus, message)

    await answer(bus, take)


async def _answer(bus: Bus, message: Replicas) -> None:
    start = time.perf_counter()
    answered = [await _vote(bus, layer, message) for layer in message.layers]
    layers = tuple(layer for layer, _ in answered)
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
    counts = tuple(LayerVotes(layer.index, *tally) for layer, tally in answered if tally is not None)
    if counts and message.mode == "training":
        votes = Votes(session=message.session, iteration=message.iteration, segment=message.segment, layers=counts)
        await bus.publish("event/votes", votes)


async def _vote(bus: Bus, layer: LayerReplicas, message: Replicas) -> tuple[LayerVoted, Tally | None]:
    """The layer's vote, its actual output passed on by reference (nothing but the vote is copied), and in training mode how far
    its executions agreed."""
    training = message.mode == "training"
    replicas = [bus.open(tensor) for tensor in layer.replicas]
    positions = None if layer.positions is None else bus.open(layer.positions)
    values = None if layer.values is None else bus.open(layer.values)
    first = replicas[0] if layer.actual is None or not training else bus.open(layer.actual)

    def voted_on() -> tuple[Ballot, Tally | None]:
        ballot = count(replicas, message.vote, protected=layer.protected, positions=positions, values=values)
        return ballot, tally(replicas, first, ballot.vote) if training and ballot.vote is not None else None

    few = sum(replica.nbytes for replica in replicas) < FEW_BYTES
    ballot, counted = voted_on() if few else await asyncio.to_thread(voted_on)
    voted = None
    readers = (training and not layer.direct) + layer.awaited
    if ballot.protected is not None:
        await bus.room(ballot.protected.nbytes)
        actual = bus.share(ballot.protected, readers=1 + training)
    else:
        actual = layer.replicas[0] if layer.actual is None else layer.actual
    if ballot.vote is not None and readers:
        await bus.room(ballot.vote.nbytes)
        voted = bus.share(ballot.vote, readers=readers)
    read = (*layer.replicas, layer.actual, layer.positions, layer.values)
    intact = [bus.release(tensor) for tensor in read if tensor is not None]
    if not all(intact):
        raise ValueError(f"layer {layer.index} was taken back while it was being voted on")
    return LayerVoted(index=layer.index, actual=actual, vote=voted, direct=layer.direct), counted
