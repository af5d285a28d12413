"""The device's half of the paper's Table I."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from accelsim.datasets import Int64
from accelsim.int8.network import Activation, UInt8
from services.boundary import cut
from services.bus import Bus
from services.bus.encoding import inline
from services.bus.messages import Ack, Command, Forward, Inputs, LayerReplicas, Outputs, Replicas
from services.edge_agent.core.forward import Executed, Segment
from services.scheme import Vote


class Client:
    """``client.sendAck`` and ``client.sendData`` of Table I, over an open bus.

    Example::

        async with Bus("mqtt://localhost:1883", service="agent", device="edge-0") as bus:
            client = Client(bus, session="run-1")
            await client.send_ack("model", seq=7, version=7)
            await client.send_outputs(forward, outputs, labels)

    ``send_data`` of the paper has a mode; here each mode has a function of its own, as they send different things:
    ``send_outputs`` in inference mode, ``send_inputs`` and then ``send_segment`` for each segment in training mode.
    """

    def __init__(self, bus: Bus, session: str) -> None:
        self.bus = bus
        self.session = session

    async def send_ack(self, of: Command, seq: int, *, nonce: int = 0, version: int = 0, error: str = "") -> None:
        """Answer command ``seq``, which had that nonce; ``version`` is the network now loaded, ``error`` why it failed."""
        ack = Ack(session=self.session, of=of, seq=seq, ok=not error, version=version, error=cut(error), nonce=nonce)
        await self.bus.publish(self.bus.topic("up/ack"), ack)

    async def send_outputs(self, forward: Forward, outputs: Activation, labels: Int64 | None) -> None:
        """Inference mode: the network's int8 or uint8 outputs (N, H, W, C), inline, for they cross the link as they are."""
        message = Outputs(
            session=self.session,
            iteration=forward.iteration,
            attempt=forward.attempt,
            outputs=inline(outputs),
            labels=None if labels is None else inline(labels),
            nonce=forward.nonce,
        )
        await self.bus.publish(self.bus.topic("up/outputs"), message)

    async def send_inputs(self, forward: Forward, images: UInt8, labels: Int64 | None, files: Sequence[bytes] = ()) -> None:
        """Training mode: the batch itself, uint8 (N, H, W, C) before any view, and labels int64 (N,) if it has any, to the
        codec.

        ``files`` are JPEG files of just these pixels, if the camera gives such: then they cross the link.
        """
        message = Inputs(
            session=self.session,
            iteration=forward.iteration,
            attempt=forward.attempt,
            images=self.bus.share(images),
            labels=None if labels is None else inline(labels),
            files=tuple(files),
            view=forward.view,
        )
        await self.bus.publish(self.bus.topic("edge/inputs"), message)

    async def send_segment(self, forward: Forward, number: int, segment: Segment, vote: Vote, *, awaited: bool) -> None:
        """Some layers' executions, to the voter. The actual output goes on from there to the codec.

        ``awaited``: the votes are read here, too.
        """
        await self.bus.room(*(size for executed in segment.layers for size in _sizes(executed)))
        layers = tuple(
            LayerReplicas(
                index=executed.index,
                replicas=tuple(self.bus.share(y, readers=1 + _passed_on(executed, i)) for i, y in enumerate(executed.replicas)),
                actual=None if executed.actual is None else self.bus.share(executed.actual, readers=2),
                protected=executed.protected,
                awaited=awaited and not executed.protected,
                **self._refereed(executed),
            )
            for executed in segment.layers
        )
        message = Replicas(
            session=self.session,
            iteration=forward.iteration,
            attempt=forward.attempt,
            segment=number,
            mode=forward.mode,
            vote=vote,
            layers=layers,
        )
        await self.bus.publish(self.bus.topic("edge/replicas"), message)

    def _refereed(self, executed: Executed) -> dict[str, Any]:
        positions, values = executed.refereed
        shared: dict[str, Any] = {"direct": True} if executed.as_it_is else {}
        if values is not None:
            shared["values"] = self.bus.share(values)
        if positions is not None:
            shared["positions"] = self.bus.share(positions.astype(np.int32))
        return shared


def _passed_on(executed: Executed, replica: int) -> bool:
    """Whether the voter hands this replica on to the codec, as the layer's actual output."""
    return replica == 0 and executed.actual is None and not executed.protected


def _sizes(executed: Executed) -> list[int]:
    """Bytes of the tensors that ``send_segment`` shares of a layer."""
    sizes = [y.nbytes for y in executed.replicas]
    if executed.actual is not None:
        sizes.append(executed.actual.nbytes)
    positions, values = executed.refereed
    if values is not None:
        sizes.append(values.nbytes)
    if positions is not None:
        sizes.append(4 * positions.size)
    return sizes
