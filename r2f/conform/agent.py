"""What an agent must do (docs/bus.md), on a tiny network, by the reference's integers. The kit is its server and voter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.engine import reference
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import INPUT, Activation, Conv, Network, Shape
from accelsim.int8.walk import walk
from r2f.conform.inline import array, equal, tiny
from r2f.conform.probe import Check, Failed, Probe, Skipped, damaged, present, survives
from services.bus import encoding
from services.bus.encoding import inline
from services.bus.messages import (
    Ack,
    Command,
    Deploy,
    Forward,
    Inputs,
    LayerReplicas,
    LayerVoted,
    Message,
    Outputs,
    Replicas,
    SetMode,
    State,
    Voted,
)
from services.scheme import Scheme, View
from services.views import seen
from services.voter.core.ballot import count

LISTEN = ("up/ack", "up/outputs", "edge/inputs", "edge/replicas", "state/agent")
CLEAN = Rates(input=0.0, weight=0.0, accumulator=0.0, output=0.0)
DIRECT = Scheme(codec="direct")
CHAINED = Scheme(referee=False)
Split = Literal["train", "test"]


@dataclass(slots=True)
class Pass:
    """What an agent sent of one pass."""

    images: npt.NDArray[Any] | None = None
    labels: npt.NDArray[Any] | None = None
    view: View | None = None
    layers: list[LayerReplicas] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    outputs: npt.NDArray[Any] | None = None


@dataclass(slots=True)
class Server:
    """The kit as the server of one agent. ``steps``: by how many integers its MAC layers may differ from the reference."""

    network: Network
    steps: int = 0
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    seq: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def mode(self, probe: Probe, mode: Literal["training", "inference"], scheme: Scheme, rates: Rates = CLEAN) -> None:
        """Set it. Raises Failed where it is not acknowledged."""
        message = SetMode(session=probe.session, seq=next(self.seq), mode=mode, rates=rates, seed=3, scheme=scheme)
        await probe.send("down/mode", message, retain=True)
        await acknowledged(probe, "mode", message.seq, f"mode {mode}, codec {scheme.codec}")

    async def model(self, probe: Probe, version: int, *, chunk: int = 1 << 17) -> None:
        """Deploy the network. Raises Failed where it is not acknowledged."""
        body = inline(np.frombuffer(storage.to_bytes(self.network), np.uint8))
        await probe.send(
            "edge/model", Deploy(session=probe.session, iteration=-1, version=version, network=body), chunk=chunk
        )  # fmt: skip
        ack = await acknowledged(probe, "model", version, f"the network, version {version}")
        if ack.version != version:
            raise Failed(f"the network, version {version}", f"version {version} in the Ack", f"{ack.version}")

    async def forward(self, probe: Probe, mode: Literal["training", "inference"], **more: Any) -> tuple[Forward, Pass, str]:
        """Run a pass and collect it. Raises Failed where it is refused or does not come whole."""
        fields: dict[str, Any] = {
            "iteration": next(self.numbers),
            "attempt": 0,
            "version": 1,
            "split": "train",
            "samples": (1, 0, 2),
        }
        asked = Forward(session=probe.session, mode=mode, **fields | more)
        sent = f"a forward, {mode}, iteration {asked.iteration}"
        await probe.send("down/forward", asked)
        return asked, await self._collected(probe, asked, sent), sent

    async def _collected(self, probe: Probe, asked: Forward, sent: str) -> Pass:
        found, wanted = Pass(), {index for index, _ in self.network.convs()}
        while True:
            message = await probe.hear(Message, lambda message: message.session == asked.session)
            of = (getattr(message, "iteration", asked.iteration), getattr(message, "attempt", asked.attempt))
            if message is not None and of != (asked.iteration, asked.attempt):
                raise Failed(sent, f"iteration {asked.iteration}, attempt {asked.attempt}", f"{type(message).__name__} of {of}")
            match message:
                case None:
                    have = sorted(layer.index for layer in found.layers)
                    raise Failed(
                        sent, "Inputs and every MAC layer" if asked.mode == "training" else "up/outputs", f"layers {have}"
                    )
                case Ack(of="forward", ok=False):
                    raise Failed(sent, "the pass", f"a refusal: {message.error}")
                case Inputs():
                    found.images, found.view = array(message.images, "images", sent), message.view
                    found.labels = None if message.labels is None else array(message.labels, "labels", sent)
                case Replicas():
                    found.layers += message.layers
                    found.segments.append(message.segment)
                    await _vote(probe, message, sent)
                case Outputs():
                    found.outputs = array(message.outputs, "outputs", sent)
                    return found
            if asked.mode == "training" and found.images is not None and {layer.index for layer in found.layers} >= wanted:
                return found

    def compare(self, found: Pass, sent: str, executions: int, *, exact: bool = True) -> None:
        """Raises Failed where a layer of a training pass is not what the reference makes of the layer before."""
        indices = [layer.index for layer in found.layers]
        wanted = [index for index, _ in self.network.convs()]
        if indices != wanted or found.segments != list(range(len(found.segments))):
            raise Failed(sent, f"layers {wanted}, each once, in segments from 0", f"{indices} in segments {found.segments}")
        if found.images is None or found.images.dtype != np.uint8 or found.images.shape[1:] != self.network.input_shape:
            kind = "none" if found.images is None else f"{found.images.dtype} {found.images.shape}"
            raise Failed(sent, f"uint8 images (N, {self.network.input_shape})", kind)
        by_index = {layer.index: layer for layer in found.layers}
        values: dict[int, Activation] = {INPUT: self.network.quantize_images(seen(found.images, found.view))}
        for index, layer, operands in walk(self.network, values):
            values[index] = expected = reference.layer(layer, operands)
            if isinstance(layer, Conv):
                runs = [array(run, f"layer {index}", sent) for run in by_index[index].replicas]
                if len(runs) < executions:
                    raise Failed(sent, f"{executions} executions of layer {index}", f"{len(runs)}")
                for run in runs:
                    if run.dtype != expected.dtype or run.shape != expected.shape:
                        raise Failed(sent, f"layer {index}: {expected.dtype} {expected.shape}", f"{run.dtype} {run.shape}")
                    away = int(np.abs(run.astype(np.int32) - expected.astype(np.int32)).max())
                    if exact and away > self.steps:
                        share = float(np.mean(run == expected))
                        raise Failed(
                            sent,
                            f"layer {index} within {self.steps} steps of the reference",
                            f"{away} steps away, {share:.2%} equal",
                        )
                values[index] = _actual(by_index[index], sent)


async def acknowledged(probe: Probe, of: Command, seq: int, sent: str, *, ok: bool = True) -> Ack:
    """The Ack of a command. Raises Failed where it does not come, or says otherwise."""
    ack = await probe.hear(Ack, lambda ack: ack.session == probe.session and ack.of == of and ack.seq == seq)
    if ack is None or ack.ok != ok or (not ok and not ack.error):
        said = "nothing in time" if ack is None else f"ok: {ack.ok}, error {ack.error!r}"
        raise Failed(sent, f"an Ack of {of} {seq} with ok: {ok}{'' if ok else ' and the reason'}", said)
    return ack


def _actual(layer: LayerReplicas, sent: str) -> Activation:
    runs = [array(run, f"layer {layer.index}", sent) for run in layer.replicas]
    if layer.protected:
        found = count(runs, "median", protected=True).protected
        assert found is not None
        return found
    return runs[0] if layer.actual is None else array(layer.actual, "actual", sent)


async def _vote(probe: Probe, asked: Replicas, sent: str) -> None:
    """The answer of a voter, for an agent that awaits it."""
    layers = []
    for layer in asked.layers:
        runs = [array(run, f"layer {layer.index}", sent) for run in layer.replicas]
        positions, values = (None if one is None else array(one, "values", sent) for one in (layer.positions, layer.values))
        try:
            ballot = count(runs, asked.vote, protected=layer.protected, positions=positions, values=values)
        except ValueError as error:
            raise Failed(sent, f"executions of layer {layer.index} that can be voted on", str(error)) from None
        actual = layer.replicas[0] if layer.actual is None else layer.actual
        layers.append(
            LayerVoted(
                index=layer.index,
                actual=actual if ballot.protected is None else inline(ballot.protected),
                vote=None if ballot.vote is None else inline(ballot.vote),
                direct=layer.direct,
            )
        )
    same = {name: getattr(asked, name) for name in ("session", "iteration", "attempt", "segment", "mode")}
    await probe.send("edge/voted", Voted(layers=tuple(layers), **same))


def checks(shape: Shape, steps: int) -> Sequence[Check]:
    """The checks of an agent whose images are (H, W, C)."""
    server = Server(tiny(shape), steps)
    first: dict[str, Pass] = {}

    async def there(probe: Probe) -> None:
        """It says in its state that it is there, and how many images it has."""
        state = await present(probe, "agent")
        if not state.samples:
            await probe.hear(State, lambda state: state.service == "agent" and bool(state.samples))
            state = probe.states["agent"]
        if min(state.samples.get(split, 0) for split in ("train", "test")) < 3:
            raise Failed("nothing", "samples: three of train and of test at least", f"{state.samples}")

    async def told(probe: Probe) -> None:
        """It acknowledges a mode and a network, and says which it has."""
        await server.mode(probe, "training", DIRECT)
        await server.model(probe, 1)
        if probe.states["agent"].version != 1:
            await probe.hear(State, lambda state: state.service == "agent" and state.version == 1)
        if probe.states["agent"].version != 1:
            raise Failed("the network, version 1", "version 1 in state/agent", f"{probe.states['agent'].version}")

    async def direct(probe: Probe) -> None:
        """A training pass, codec direct: images, labels, every MAC layer's outputs, to the integer."""
        asked, found, sent = await server.forward(probe, "training")
        server.compare(found, sent, 1)
        assert found.images is not None
        if len(found.images) != len(asked.samples) or found.labels is None or found.labels.shape != (len(asked.samples),):
            shape = None if found.labels is None else found.labels.shape
            raise Failed(sent, f"{len(asked.samples)} images and labels", f"{len(found.images)} and {shape}")
        first["direct"] = found

    async def repeated(probe: Probe) -> None:
        """The same pass again gives the same bytes."""
        asked, before, sent = await server.forward(probe, "training")
        _, again, _ = await server.forward(probe, "training", iteration=asked.iteration, attempt=1)
        if before.layers != again.layers or not equal(before.images, again.images):
            raise Failed(f"{sent}, and attempt 1", "the same bytes", "others")

    async def order(probe: Probe) -> None:
        """Samples come in the order that was asked for."""
        _, found, sent = await server.forward(probe, "training", samples=(0, 2, 1))
        expected = None if "direct" not in first else first["direct"].images
        if expected is not None and not equal(found.images, expected[[1, 2, 0]]):
            raise Failed(sent + ", samples 0, 2, 1", "the images of 1, 0, 2 in that order", "others")

    async def chained(probe: Probe) -> None:
        """A training pass, codec chained: three executions or more of each MAC layer, or the referee's values."""
        await server.mode(probe, "training", CHAINED)
        _, found, sent = await server.forward(probe, "training")
        server.compare(found, sent, 3)

    async def protected(probe: Probe) -> None:
        """The vote of a protected layer feeds the next one."""
        index, _ = next(iter(server.network.convs()))
        await server.mode(probe, "training", msgspec.structs.replace(CHAINED, protected=(index,)))
        _, found, sent = await server.forward(probe, "training")
        server.compare(found, sent, 3)
        if not next(layer for layer in found.layers if layer.index == index).protected:
            raise Failed(sent, f"layer {index} with protected: true", "false")

    async def viewed(probe: Probe) -> None:
        """A view: the images go as they are, and the layers have seen them mirrored and moved."""
        await server.mode(probe, "training", DIRECT)
        asked = View(seed=11, flip=True, shift=2)
        _, found, sent = await server.forward(probe, "training", view=asked)
        if found.view != asked:
            raise Failed(sent, f"Inputs with {asked}", f"{found.view}")
        if "direct" in first and not equal(found.images, first["direct"].images):
            raise Failed(sent, "the images as they were before the view", "others")
        server.compare(found, sent, 1)

    async def inference(probe: Probe) -> None:
        """An inference pass: the outputs alone, of the images of both sets, to the integer."""
        await server.mode(probe, "training", DIRECT)
        splits: tuple[Split, ...] = ("train", "test")
        passes = [(split, await server.forward(probe, "training", split=split)) for split in splits]
        await server.mode(probe, "inference", DIRECT)
        for split, (_, trained, _) in passes:
            assert trained.images is not None
            _, found, sent = await server.forward(probe, "inference", split=split, iteration=2**30 + next(server.numbers))
            expected = reference.run(server.network, server.network.quantize_images(trained.images))[-1]
            if found.layers or found.images is not None:
                raise Failed(sent, "up/outputs alone", "layers or images, too")
            assert found.outputs is not None
            if found.outputs.shape != expected.shape or found.outputs.dtype != expected.dtype:
                raise Failed(sent, f"{expected.dtype} {expected.shape}", f"{found.outputs.dtype} {found.outputs.shape}")
            if not server.steps and not np.array_equal(found.outputs, expected):
                raise Failed(sent, "the reference's outputs", f"{np.mean(found.outputs == expected):.2%} of them")

    async def faulty(probe: Probe) -> None:
        """Told a bit error rate, a simulated device has errors, the same for the same seed."""
        await server.mode(probe, "training", DIRECT, Rates(input=0.0, weight=0.0, accumulator=0.0, output=0.02))
        asked, before, sent = await server.forward(probe, "training")
        try:
            server.compare(before, sent, 1)
        except Failed:
            _, again, _ = await server.forward(probe, "training", iteration=asked.iteration, attempt=1)
            if before.layers != again.layers:
                raise Failed(f"{sent}, and attempt 1", "the same errors", "others") from None
            _, other, _ = await server.forward(probe, "training", iteration=asked.iteration, attempt=2, seed=99)
            if before.layers == other.layers:
                raise Failed(f"{sent} with another seed", "other errors", "the same") from None
            return
        raise Skipped(sent, "errors at a rate of 0.02, or a device whose errors are its own", "no errors")

    async def unknown(probe: Probe) -> None:
        """A sample that it does not have is refused with the reason."""
        await server.mode(probe, "training", DIRECT)
        number = next(server.numbers)
        asked = Forward(
            session=probe.session, iteration=number, attempt=0, mode="training", version=1, split="train", samples=(2**40,)
        )  # fmt: skip
        await probe.send("down/forward", asked)
        await acknowledged(probe, "forward", number, "a forward of sample 2^40", ok=False)

    async def broken(probe: Probe) -> None:
        """A network that is none is refused with the reason, and the one before stays."""
        whole = storage.to_bytes(server.network)
        bodies = {
            "noise": bytes(range(256)) * 4,
            "a network that is cut off": whole[:-7],
            "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + whole[8:],
            "another format": whole.replace(b"r2f-int8-network/2", b"r2f-int8-network/9"),
            "a layer of another type": whole.replace(b"MaxPool", b"MinPool"),
            "an operand that is not there": whole.replace(b'\\"inputs\\":[0]', b'\\"inputs\\":[7]'),
        }
        for version, (what, body) in enumerate(bodies.items(), 100):
            network = inline(np.frombuffer(body, np.uint8))
            await probe.send("edge/model", Deploy(session=probe.session, iteration=-1, version=version, network=network))
            await acknowledged(probe, "model", version, f"{what} as the network", ok=False)

    async def chunked(probe: Probe) -> None:
        """A network in chunks of 300 bytes."""
        await server.model(probe, 2, chunk=300)
        _, found, sent = await server.forward(probe, "training", version=2)
        server.compare(found, sent, 1)
        await server.model(probe, 1)

    async def early(probe: Probe) -> None:
        """A forward that comes before its network waits for it."""
        number = next(server.numbers)
        asked = Forward(
            session=probe.session, iteration=number, attempt=0, mode="training", version=3, split="train", samples=(0,)
        )
        await probe.send("down/forward", asked)
        if await probe.hear(Replicas, within_s=0.5) is not None:
            raise Failed("a forward of version 3, which it has not", "nothing yet", "a pass")
        await server.model(probe, 3)
        found = await server._collected(probe, asked, "a forward, then its network")
        server.compare(found, "a forward, then its network", 1)
        await server.model(probe, 1)

    async def other_session(probe: Probe) -> None:
        """A forward of another run is not run; a new run begins without a network."""
        stray = Forward(session="another-run", iteration=5, attempt=0, mode="training", version=1, split="train", samples=(0,))
        await probe.send("down/forward", stray)
        if await probe.hear(Inputs, within_s=0.5) is not None:
            raise Failed("a forward of another run", "nothing", "a pass")
        probe.session += "-next"
        await server.mode(probe, "training", DIRECT)
        early = msgspec.structs.replace(stray, session=probe.session)
        await probe.send("down/forward", early)
        if await probe.hear(Inputs, within_s=0.5) is not None:
            raise Failed(
                "a forward of a new run, before its network", "nothing yet", "a pass with the network of the run before"
            )
        await server.model(probe, 1)
        await server._collected(probe, early, "a forward of a new run, then its network")

    async def hostile(probe: Probe) -> None:
        """What is no command is dropped, and the next command carried out."""
        await server.model(probe, 1)
        await server.mode(probe, "training", DIRECT)
        asked = Forward(session=probe.session, iteration=1, attempt=0, mode="training", version=1, split="train", samples=(0,))
        body = inline(np.frombuffer(storage.to_bytes(server.network), np.uint8))
        mode = SetMode(session=probe.session, seq=0, mode="training")
        commands = {
            "down/forward": asked, "down/mode": mode,
            "edge/model": Deploy(session=probe.session, iteration=-1, version=50, network=body),
        }  # fmt: skip
        packets = [(what, key, payload) for key, message in commands.items() for what, payload in damaged(message)]
        plain = msgspec.msgpack.decode(encoding.encode(asked))
        packets += [
            ("a view of 2^40 pixels", "down/forward", msgspec.msgpack.encode(plain | {"view": {"seed": 1, "shift": 2**40}})),
            ("rates above 1", "down/forward", msgspec.msgpack.encode(plain | {"rates": {"output": 7.0}})),
            ("a split that is none", "down/forward", msgspec.msgpack.encode(plain | {"split": "holiday"})),
        ]

        async def alive() -> None:
            _, found, sent = await server.forward(probe, "training")
            server.compare(found, sent, 1)

        await survives(probe, "agent", packets, alive)

    return (
        there, told, direct, repeated, order, chained, protected, viewed, inference, faulty, unknown, broken, chunked, early,
        other_session, hostile,
    )  # fmt: skip
