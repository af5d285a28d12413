"""The conformance kit: right programs pass it, ours and those in C, and each check fails on one that is wrong in just that."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from msgspec.structs import replace

from accelsim.datasets import load
from broker.child import environment, python
from broker.launch import launch
from r2f.conform import agent, codec, voter
from r2f.conform.command import Role, conform, size_of
from r2f.conform.probe import Check, Verdict, probing, verdicts
from services.bus.encoding import inline, view
from services.bus.messages import (
    Ack,
    Deploy,
    EncodedInputs,
    EncodedLayers,
    EncodedModel,
    Forward,
    Message,
    Outputs,
    Repair,
    Replicas,
    SetMode,
    Tensor,
    Voted,
)
from tests.r2f.conform.crooked import Lie, running
from tests.r2f.test_integrating import built

pytestmark = pytest.mark.timeout(240)
SIZE = (8, 8, 1)
SANITIZED = {"CFLAGS": "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"}
CHECKS: dict[Role, Callable[[], Sequence[Check]]] = {
    "voter": lambda: voter.CHECKS,
    "agent": lambda: agent.checks(SIZE, 0),
    "codec": codec.checks,
}
LISTEN: dict[Role, tuple[str, ...]] = {"voter": voter.LISTEN, "agent": agent.LISTEN, "codec": codec.LISTEN}
BASIS: dict[Role, tuple[str, ...]] = {
    "voter": ("there", "answers"),
    "agent": ("there", "told", "direct"),
    "codec": ("there", "whole"),
}
"""The checks that others build on: a session, a mode and a network are there behind them."""


def name_of(check: Check) -> str:
    """The name of a check's function."""
    return check.__name__.strip("_")


async def judged(role: Role, url: str, within_s: float = 5.0) -> list[Verdict]:
    """Verdicts of all checks in order."""
    found: list[Verdict] = []
    passed = await conform(url, "edge-0", role, within_s, SIZE, 0, found.append)
    assert passed == all(verdict.word != "FAIL" for verdict in found)
    return found


async def judged_by(role: Role, check: str, url: str, within_s: float) -> Verdict:
    """The verdict of one check, behind those that it builds on."""
    checks = list(CHECKS[role]())
    place = [name_of(one) for one in checks].index(check)
    asked = [one for one in checks[:place] if name_of(one) in BASIS[role]] + [checks[place]]
    async with probing(url, "edge-0", within_s, *LISTEN[role]) as probe:
        *_, found = [verdict async for verdict in verdicts(probe, role, asked)]
    assert found.check == f"{role}: {(checks[place].__doc__ or '').splitlines()[0].rstrip('.')}"
    return found


async def of_process(role: Role, command: Callable[[str], Sequence[str | Path]], log: Path) -> list[Verdict]:
    """Verdicts on a program, which must be alive behind them and end in peace."""
    async with launch() as broker:
        with log.open("wb") as said:
            environ = environment() | {"R2F_SHM_DIR": ""}
            process = await asyncio.create_subprocess_exec(*command(broker.url()), stderr=said, env=environ)
        try:
            found = await judged(role, broker.url(), 20.0)
            assert process.returncode is None, log.read_text()
        finally:
            if process.returncode is None:
                process.terminate()
            code = await asyncio.wait_for(process.wait(), 20)
        assert code in (0, -signal.SIGTERM), log.read_text()
    return found


# -- right programs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "module", "options"),
    [
        ("voter", "services.voter", ()),
        ("agent", "services.edge_agent", ("--data", "digits")),
        ("codec", "services.codec", ("--side", "device")),
    ],
    ids=["voter", "agent", "codec"],
)
async def test_our_services_pass(role: Role, module: str, options: tuple[str, ...], tmp_path: Path) -> None:
    found = await of_process(role, lambda url: python(module, *options, "--broker", url), tmp_path / "log")
    assert [str(verdict) for verdict in found if verdict.word != "PASS"] == []
    assert len(found) == len(CHECKS[role]())


async def test_the_voter_in_c_passes_under_sanitizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", SANITIZED["CFLAGS"])
    program = built("c-voter", tmp_path)
    found = await of_process("voter", lambda url: [program, url, "edge-0"], tmp_path / "log")
    assert [str(verdict) for verdict in found if verdict.word != "PASS"] == []


async def test_the_agent_in_c_passes_under_sanitizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", SANITIZED["CFLAGS"])
    program, data = built("c-agent", tmp_path), load("digits")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.save(tmp_path / f"{name}.npy", getattr(data, name))
    found = await of_process("agent", lambda url: [program, url, "edge-0", tmp_path], tmp_path / "log")
    assert [str(verdict) for verdict in found if verdict.word != "PASS"] == []


# -- programs that are wrong in one thing -----------------------------------------------------------------------------


def layers(change: Callable[[Any], Any], when: Callable[[Any], bool] = lambda _: True, of: type[Message] = Voted) -> Lie:
    """Every layer of a kind of message, changed on its way out."""

    def out(message: Message) -> Message:
        if not isinstance(message, of) or not when(message):
            return message
        return replace(message, layers=tuple(change(layer) for layer in message.layers))

    return Lie(out=out)


def asked(change: Callable[[Any], Any], kind: type[Message] = Replicas) -> Lie:
    """A kind of message, changed on its way in."""
    return Lie(into=lambda message: change(message) if isinstance(message, kind) else message)


def asked_layers(**fields: Any) -> Lie:
    return asked(lambda message: replace(message, layers=tuple(replace(layer, **fields) for layer in message.layers)))


def bumped(tensor: Tensor | None) -> Tensor | None:
    """The same with its first element another."""
    if tensor is None:
        return None
    array = view(tensor).copy()
    array.reshape(-1)[0] ^= 1
    return inline(array)


def once(key: Callable[[Any], Any], kind: type[Message]) -> Lie:
    """Of messages that are alike the first alone is taken in."""
    seen = set()

    def into(message: Message) -> Message | None:
        if isinstance(message, kind):
            if key(message) in seen:
                return None
            seen.add(key(message))
        return message

    return Lie(into=into)


def only_first_session(*kinds: type[Message]) -> Lie:
    first: list[str] = []

    def into(message: Message) -> Message | None:
        if isinstance(message, kinds):
            first.append(message.session)
            return message if message.session == first[0] else None
        return message

    return Lie(into=into)


def in_order_alone() -> Lie:
    """Chunks that come in order, each once, are taken; others are lost."""
    following = [0]

    def packet(payload: bytes) -> bool:
        if b"chunk" not in payload or b"manifest" in payload:
            following[0] = 0 if b"manifest" in payload else following[0]
            return True
        right = msgpack.unpackb(payload)["index"] == following[0]
        following[0] += right
        return right

    return Lie(packet=packet)


def no_votes(message: Voted) -> Message:
    """A vote over one execution: the execution."""
    return replace(message, layers=tuple(replace(one, vote=one.vote or one.actual) for one in message.layers))


def first_replica(layer: Any) -> Any:
    return replace(layer, actual=None)


def without_values(message: Replicas) -> Replicas:
    def without(one: Any) -> Any:
        return replace(one, values=None, positions=None) if len(one.replicas) > 2 else one

    return replace(message, layers=tuple(map(without, message.layers)))


def two_zeroed(message: Replicas) -> Replicas:
    def zeroed(one: Any) -> Any:
        return replace(one, values=inline(view(one.values) * 0)) if len(one.replicas) == 2 and one.values is not None else one

    return replace(message, layers=tuple(map(zeroed, message.layers)))


VOTERS: dict[str, Callable[[], Lie]] = {
    "answers": lambda: Lie(out=lambda m: replace(m, segment=m.segment + 1) if isinstance(m, Voted) else m),
    "median": lambda: asked(lambda message: replace(message, vote="bitwise")),
    "bitwise": lambda: asked(lambda message: replace(message, vote="median")),
    "one": lambda: Lie(out=lambda m: no_votes(m) if isinstance(m, Voted) else m),
    "values": lambda: asked(without_values),
    "two": lambda: asked(two_zeroed),
    "actual": lambda: asked_layers(actual=None),
    "protected": lambda: asked_layers(protected=False),
    "direct": lambda: layers(lambda layer: replace(layer, direct=False)),
    "several": lambda: Lie(out=lambda m: replace(m, layers=m.layers[::-1]) if isinstance(m, Voted) else m),
    "again": lambda: once(lambda m: (m.session, m.iteration, m.segment, m.layers), Replicas),
    "sessions": lambda: only_first_session(Replicas),
    "newer": lambda: Lie(packet=lambda payload: b"added_later" not in payload),
    "large": lambda: Lie(packet=lambda payload: b"manifest" not in payload),
    "disordered": in_order_alone,
    "hostile": lambda: Lie(dies=True),
}
AGENTS: dict[str, Callable[[], Lie]] = {
    "there": lambda: Lie(said=lambda fields: fields | ({"samples": {}} if "samples" in fields else {})),
    "told": lambda: Lie(out=lambda m: None if isinstance(m, Ack) and m.of == "model" else m),
    "direct": lambda: layers(
        lambda layer: replace(layer, replicas=(bumped(layer.replicas[0]), *layer.replicas[1:])), of=Replicas
    ),
    "repeated": lambda: layers(
        lambda layer: replace(layer, replicas=tuple(map(bumped, layer.replicas))), lambda message: message.attempt > 0, Replicas
    ),
    "order": lambda: asked(lambda message: replace(message, samples=tuple(sorted(message.samples))), Forward),
    "chained": lambda: layers(
        lambda layer: replace(layer, replicas=layer.replicas[:1]) if not layer.protected else layer, of=Replicas
    ),
    "protected": lambda: layers(lambda layer: replace(layer, protected=False), of=Replicas),
    "viewed": lambda: asked(lambda message: replace(message, view=None), Forward),
    "inference": lambda: Lie(out=lambda m: replace(m, outputs=bumped(m.outputs)) if isinstance(m, Outputs) else m),
    "faulty": lambda: asked(lambda message: replace(message, seed=(message.seed or 0) + 7 * message.attempt), Forward),
    "unknown": lambda: asked(lambda message: replace(message, samples=tuple(i % 9 for i in message.samples)), Forward),
    "broken": lambda: Lie(out=lambda m: replace(m, ok=True, error="") if isinstance(m, Ack) and m.of == "model" else m),
    "chunked": lambda: Lie(packet=lambda payload: b"manifest" not in payload),
    "early": lambda: asked(lambda message: None if message.version == 3 else message, Forward),
    "other_session": lambda: only_first_session(SetMode, Deploy),
    "hostile": lambda: Lie(dies=True),
}
CODECS: dict[str, Callable[[], Lie]] = {
    "whole": lambda: Lie(out=lambda m: replace(m, network=bumped(m.network)) if isinstance(m, Deploy) else m),
    "direct": lambda: Lie(out=lambda m: replace(m, labels=None) if isinstance(m, EncodedInputs) else m),
    "chained": lambda: layers(
        lambda layer: type(layer)(layer.index, layer.digest, layer.body[:-1] + bytes([layer.body[-1] ^ 1])), of=EncodedLayers
    ),
    "repaired": lambda: asked(lambda message: None, Repair),
    "update": lambda: asked(lambda message: None if message.base == 1 else message, EncodedModel),
    "baseless": lambda: Lie(out=lambda m: None if isinstance(m, Ack) else m),
    "session": lambda: only_first_session(EncodedModel),
    "hostile": lambda: Lie(dies=True),
}
ALL: dict[Role, dict[str, Callable[[], Lie]]] = {"voter": VOTERS, "agent": AGENTS, "codec": CODECS}
WRONG = [(role, check, lie) for role, lies in ALL.items() for check, lie in lies.items()]


@pytest.mark.parametrize(("role", "check", "lie"), WRONG, ids=[f"{role}-{check}" for role, check, _ in WRONG])
async def test_a_check_fails_on_a_program_that_is_wrong_in_it(role: Role, check: str, lie: Callable[[], Lie]) -> None:
    async with launch() as broker, running(role, broker.url(), lie()):
        verdict = await judged_by(role, check, broker.url(), 1.5)
    assert verdict.word == "FAIL"
    assert all((verdict.sent, verdict.expected, verdict.came)), "it says what was sent, what was expected and what came"


def test_every_check_has_a_wrong_program() -> None:
    for role, lies in ALL.items():
        assert {name_of(check) for check in CHECKS[role]()} - lies.keys() <= {"there"}


@pytest.mark.parametrize("role", ["voter", "agent", "codec"])
async def test_where_no_program_is_the_first_check_fails_and_is_the_last(role: Role) -> None:
    async with launch() as broker:
        found = await judged(role, broker.url(), 0.5)
    assert [verdict.word for verdict in found] == ["FAIL"]
    assert "online" in found[0].expected


# -- the command ------------------------------------------------------------------------------------------------------


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*python("r2f"), "conform", *options], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip


async def test_the_command_says_a_verdict_a_line_and_ends_with_1_where_one_fails() -> None:
    async with launch() as broker, running("voter", broker.url(), Lie()):
        options = ("--role", "voter", "--broker", broker.url(), "--within", "10")
        done = await asyncio.to_thread(command, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("PASS voter: ") == len(voter.CHECKS) == len(done.stdout.splitlines())
        done = await asyncio.to_thread(command, *options[:-2], "--device", "edge-9", "--within", "0.5")
        assert done.returncode == 1
        assert done.stdout.startswith("FAIL voter: It says in its state that it is there: sent nothing; expected a retained")


def test_no_user_error_ends_in_a_traceback() -> None:
    for options in (("--broker", "mqtt://127.0.0.1:1", "--within", "0.2"), ("--broker", "nonsense://x")):
        done = command("--role", "voter", *options)
        assert done.returncode == 1
        assert done.stderr.startswith("r2f: ")
        assert "Traceback" not in done.stderr
    for size in ("8x8", "7x8x1", "8x8x0", "axbxc"):
        with pytest.raises(ValueError, match="--image-size"):
            size_of(size)
