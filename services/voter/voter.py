"""TMR: the vote over a layer's replicas, for the codec's increments and for protected layers alike."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from accelsim.network import Int8
from services.bus import Bus
from services.bus.messages import LayerReplicas, LayerVoted, Replicas, Timing, Voted
from services.voter.vote import vote

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
    training = message.mode == "training"
    actual = layer.replicas[0] if layer.actual is None else layer.actual
    voted = None
    if len(layer.replicas) > 1:
        replicas = [bus.open(tensor).astype(np.int8, copy=False) for tensor in layer.replicas]
        winner = await asyncio.to_thread(vote, replicas, message.vote)
        if layer.protected:
            # In TMR the device has three executions, however many more were run to know its errors.
            tmr = winner if len(replicas) == TMR else await asyncio.to_thread(vote, replicas[:TMR], message.vote)
            await bus.room(tmr.nbytes)
            actual = bus.share(tmr, readers=1 + training)
        if layer.values is not None:
            _override(winner, None if layer.positions is None else bus.open(layer.positions), bus.open(layer.values))
        readers = (training and not layer.direct) + (layer.actual is not None)
        if readers:
            await bus.room(winner.nbytes)
            voted = bus.share(winner, readers=readers)
    read = (*layer.replicas, layer.actual, layer.positions, layer.values)
    intact = [bus.release(tensor) for tensor in read if tensor is not None]
    if not all(intact):
        raise ValueError(f"layer {layer.index} was taken back while it was being voted on")
    return LayerVoted(index=layer.index, actual=actual, vote=voted, direct=layer.direct)


def _override(winner: Int8, positions: npt.NDArray[Any] | None, values: npt.NDArray[Any]) -> None:
    """The referee's values in place of the vote's. Raises ValueError where they do not fit the layer."""
    if positions is None:
        if values.dtype != np.int8 or values.shape != (winner.size,):
            raise ValueError(f"edge/replicas: values {values.dtype} {values.shape} for a layer of {winner.size} elements")
        winner.reshape(-1)[:] = values
        return
    if positions.dtype != np.int32 or values.dtype != np.int8 or positions.shape != values.shape or positions.ndim != 1:
        raise ValueError(
            f"edge/replicas: positions {positions.dtype} {positions.shape} and values {values.dtype} {values.shape}; "
            "expected int32 and int8 of one length"
        )
    if positions.size and not 0 <= positions.min() <= positions.max() < winner.size:
        raise ValueError(f"edge/replicas: positions must lie in 0..{winner.size - 1}")
    winner.reshape(-1)[positions] = values
