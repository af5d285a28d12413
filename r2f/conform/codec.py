"""What the device's codec must do (docs/wire.md), against the server's end of ours: all bits of the device arrive."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from accelsim.engine import reference
from accelsim.int8 import storage
from accelsim.int8.network import INPUT, Activation, Conv, Network
from accelsim.int8.walk import walk
from r2f.conform.inline import array, tiny
from r2f.conform.probe import Check, Failed, Probe, damaged, present, survives
from services.bus.encoding import inline
from services.bus.messages import (
    Ack,
    Deploy,
    EncodedInputs,
    EncodedLayers,
    EncodedModel,
    EncodedRepair,
    Inputs,
    LayerVoted,
    Message,
    Repair,
    SetMode,
    Voted,
)
from services.codec.core.rebuild import Rebuilt, Wrong
from services.codec.core.sent import SentImages, SentLayer, SentModel
from services.codec.core.server_end import ServerEnd
from services.scheme import Scheme

LISTEN = ("edge/model", "up/inputs", "up/layers", "up/repair", "up/ack", "state/codec-device")
SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(7).integers(0, 256, (3, *SHAPE), np.uint8)
CHAINED, DIRECT = Scheme(), Scheme(codec="direct")


def _other(network: Network) -> Network:
    """The same graph with some weights moved by a step, as after an update."""
    layers = [
        dataclasses.replace(layer, weight=np.where(layer.weight < 127, layer.weight + 1, layer.weight).astype(np.int8))
        if isinstance(layer, Conv)
        else layer
        for layer in network.layers
    ]
    return dataclasses.replace(network, layers=tuple(layers))


@dataclass(slots=True)
class Ends:
    """The kit as everything around a device's codec: agent, voter, and the server's end of the link."""

    network: Network
    end: ServerEnd = field(default_factory=lambda: ServerEnd("portable"))
    version: int = 0
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def mode(self, probe: Probe, scheme: Scheme) -> None:
        """``down/mode``; a codec does not acknowledge it."""
        await probe.send("down/mode", SetMode(session=probe.session, seq=1, mode="training", scheme=scheme), retain=True)

    def encoded(self, probe: Probe, sent: SentModel) -> EncodedModel:
        """``down/model`` of what the server's end gives."""
        return EncodedModel(
            session=probe.session, iteration=-1, sent_at=time.time(), version=sent.version, base=sent.base, digest=sent.digest,
            body=sent.body,
        )  # fmt: skip

    async def model(self, probe: Probe, network: Network, what: str) -> None:
        """Send a version, and see that just it comes out at the agent."""
        self.version += 1
        self.end.deploy(self.version, -1, network)
        sent = self.end.model()
        await probe.send("down/model", self.encoded(probe, sent))
        deploy = await probe.hear(Deploy, lambda deploy: deploy.session == probe.session)
        if deploy is None or deploy.version != self.version:
            raise Failed(what, f"edge/model, version {self.version}", "none" if deploy is None else f"version {deploy.version}")
        if array(deploy.network, "network", what).tobytes() != storage.to_bytes(network):
            raise Failed(what, "the network, byte for byte", "other bytes")
        self.network = network

    async def run(self, probe: Probe, scheme: Scheme, *, wrong: float, what: str) -> None:
        """A whole pass with errors, whose votes are wrong at a share of elements; every bit must arrive."""
        iteration = next(self.numbers)
        of: dict[str, Any] = {"session": probe.session, "iteration": iteration, "attempt": 0}
        await self.mode(probe, scheme)
        rebuild = self.end.begin(self.version, scheme)
        labels = np.arange(len(IMAGES))
        await probe.send("edge/inputs", Inputs(**of, images=inline(IMAGES), labels=inline(labels)))
        sent = await self._answer(probe, EncodedInputs, iteration, what, "up/inputs")
        try:
            images = self.end.images(SentImages(sent.hashes, sent.shape, sent.fresh, sent.fresh_of), self.network)
        except ValueError as error:
            raise Failed(what, "images as wire.md has them", str(error)) from None
        if not np.array_equal(images, IMAGES):
            raise Failed(what, "the images, byte for byte", "others")
        if sent.labels is None or not np.array_equal(array(sent.labels, "labels", what), labels):
            raise Failed(what, f"labels {labels}", "others")
        rebuild.start(images)
        actual = self._device(wrong)
        for number, (index, (output, vote)) in enumerate(actual.items()):
            layer = LayerVoted(index=index, actual=inline(output), vote=None if scheme.codec == "direct" else inline(vote))
            await probe.send("edge/voted", Voted(**of, segment=number, mode="training", layers=(layer,)))
            encoded = await self._answer(probe, EncodedLayers, iteration, what, f"up/layers, segment {number}")
            if (encoded.segment, encoded.batch) != (number, len(IMAGES)):
                raise Failed(what, f"segment {number} of {len(IMAGES)} images", f"{encoded.segment} of {encoded.batch}")
            rebuild.take(number, [SentLayer(one.index, one.digest, one.body) for one in encoded.layers])
            await self._rebuilt(probe, rebuild, of, index, output, what)

    async def _rebuilt(self, probe: Probe, rebuild: Any, of: dict[str, Any], index: int, output: Activation, what: str) -> None:
        while True:
            try:
                found = rebuild.next()
            except ValueError as error:
                raise Failed(what, f"layer {index} as wire.md has it", str(error)) from None
            if isinstance(found, Wrong):
                await probe.send("down/repair", Repair(**of, layer=found.index, digests=found.digests))
                repair = await self._answer(probe, EncodedRepair, of["iteration"], what, f"up/repair of layer {found.index}")
                rebuild.mend({one.index: one.body for one in repair.layers})
                continue
            if not isinstance(found, Rebuilt) or found.index != index or not np.array_equal(found.actual, output):
                raise Failed(
                    what, f"layer {index}, bit for bit", "nothing" if found is None else f"layer {found.index}, other bits"
                )
            return

    async def _answer(self, probe: Probe, kind: type[Any], iteration: int, what: str, expected: str) -> Any:
        found = await probe.hear(Message, lambda m: m.session == probe.session and isinstance(m, kind | Ack))
        if not isinstance(found, kind) or (found.iteration, found.attempt) != (iteration, 0):
            raise Failed(what, expected, "nothing in time" if found is None else str(found)[:200])
        return found

    def _device(self, wrong: float) -> dict[int, tuple[Activation, Activation]]:
        """Of each MAC layer the device's outputs, errors included, and the vote over them."""
        generator = np.random.default_rng(int(1000 * wrong))
        values: dict[int, Activation] = {INPUT: self.network.quantize_images(IMAGES)}
        found = {}
        for index, layer, operands in walk(self.network, values):
            values[index] = right = reference.layer(layer, operands)
            if isinstance(layer, Conv):
                values[index] = np.where(generator.random(right.shape) < 0.05, right ^ right.dtype.type(16), right)
                found[index] = (
                    values[index],
                    np.where(generator.random(right.shape) < wrong, right ^ right.dtype.type(4), right),
                )
        return found


def checks() -> Sequence[Check]:
    """The checks of a device's codec."""
    ends = Ends(tiny(SHAPE))

    async def there(probe: Probe) -> None:
        """It says in its state that it is there."""
        await present(probe, "codec-device")

    async def whole(probe: Probe) -> None:
        """A whole network comes out at the agent byte for byte."""
        await ends.mode(probe, DIRECT)
        await ends.model(probe, ends.network, "version 1, whole")

    async def direct(probe: Probe) -> None:
        """A pass, codec direct: images, labels and outputs arrive."""
        await ends.run(probe, DIRECT, wrong=0.0, what="a pass, codec direct")

    async def chained(probe: Probe) -> None:
        """A pass, codec chained, with right votes: every error of the device arrives."""
        await ends.run(probe, CHAINED, wrong=0.0, what="a pass, codec chained")

    async def repaired(probe: Probe) -> None:
        """A pass whose votes are wrong: it repairs what the server asks for."""
        await ends.run(probe, CHAINED, wrong=0.03, what="a pass, codec chained, 3 % of the votes wrong")

    async def update(probe: Probe) -> None:
        """An update builds on the network before."""
        await ends.model(probe, _other(ends.network), f"version {ends.version + 1} as a delta")
        await ends.run(probe, CHAINED, wrong=0.0, what="a pass on it")

    async def baseless(probe: Probe) -> None:
        """An update that builds on what it has not is answered with an Ack of base."""
        stray = EncodedModel(
            session=probe.session, iteration=-1, sent_at=time.time(), version=99, base=98, digest=0, body=b"\x00"
        )  # fmt: skip
        await probe.send("down/model", stray)
        ack = await probe.hear(Ack, lambda ack: ack.session == probe.session)
        if ack is None or (ack.of, ack.seq, ack.ok) != ("base", 99, False):
            raise Failed("version 99, building on 98", "an Ack of base 99, ok: false", str(ack))

    async def session(probe: Probe) -> None:
        """A new run begins without a network and without known samples."""
        probe.session += "-next"
        ends.end, ends.version = ServerEnd("portable"), 0
        await ends.mode(probe, CHAINED)
        await ends.model(probe, ends.network, "version 1 of a new run")
        await ends.run(probe, CHAINED, wrong=0.0, what="a pass of a new run")

    async def hostile(probe: Probe) -> None:
        """What is no message of its topics is dropped, and the next pass encoded."""
        of: dict[str, Any] = {"session": probe.session, "iteration": 10**6, "attempt": 0}
        layer = LayerVoted(index=0, actual=inline(IMAGES.astype(np.int8)))
        messages: dict[str, Message] = {
            "edge/inputs": Inputs(**of, images=inline(IMAGES), labels=None),
            "edge/voted": Voted(**of, segment=0, mode="training", layers=(layer,)),
            "down/model": ends.encoded(probe, SentModel(500, 0, 0, b"\x00")),
            "down/repair": Repair(**of, layer=2**31),
        }
        packets = [(what, key, payload) for key, message in messages.items() for what, payload in damaged(message)]

        async def alive() -> None:
            await ends.run(probe, CHAINED, wrong=0.0, what="a right pass")

        await survives(probe, "codec-device", packets, alive)

    return there, whole, direct, chained, repaired, update, baseless, session, hostile
