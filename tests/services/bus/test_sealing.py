"""Signed messages: only who has the device's key can make one, and none is taken twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from services.bus import Bus, MessageError, encoding, keys, make_keys, topics
from services.bus.keys import KEY_BYTES, Keys
from services.bus.messages import Ack, EncodedModel, Flow, Message, Outputs, Sealed, SetMode, State, Stop, Timing
from services.bus.sealing import REORDERED, Seals

ROOT = Path(__file__).resolve().parents[3]
MODE, ACK, OUTPUTS, STOP = (
    topics.build("d", *name.split("/")) for name in ("down/mode", "up/ack", "up/outputs", "server/stop")
)
SEALED = [f"r2f/v1/d/{key}" for key in topics.SENDERS]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    make_keys.make(path, ["d", "e"])
    return path


class End:
    """What one service seals and opens."""

    def __init__(self, path: Path | None, service: str, device: str = "d", *, passive: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.seals = Seals(keys.keys_of(path), service, device, passive=passive, counts=self.counts)

    def sealed(self, topic: str, message: Message) -> Sealed:
        sealed = self.seals.seal(topic, message)
        assert isinstance(sealed, Sealed)
        return sealed

    def open(self, topic: str, message: Message) -> Message:
        return self.seals.open(topic, message)

    def refuses(self, topic: str, message: Message, why: str, count: str) -> None:
        before = self.counts[count]
        with pytest.raises(MessageError, match=why):
            self.open(topic, message)
        assert self.counts[count] == before + 1


def mode(seq: int = 1) -> SetMode:
    return SetMode(session="s", seq=seq, mode="training")


def test_what_is_sealed_is_opened_and_is_the_same(key_file: Path) -> None:
    trainer, agent = End(key_file, "trainer"), End(key_file, "agent")
    sealed = trainer.sealed(MODE, mode())
    crossed = encoding.decode(MODE, encoding.encode(sealed))
    assert agent.open(MODE, crossed) == mode()
    assert agent.counts == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"body": encoding.encode(mode(2))}, {"mac": bytes(16)}, {"by": "agent"}, {"epoch": 2**52}, {"count": 2},
        {"epoch": 0}, {"body": b""},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_nothing_of_an_envelope_can_be_changed(key_file: Path, changed: dict[str, Any]) -> None:
    trainer, agent = End(key_file, "trainer"), End(key_file, "agent")
    sealed = trainer.sealed(MODE, mode())
    agent.refuses(MODE, msgspec.structs.replace(sealed, **changed), "not signed with the key of d, or changed", "forged")
    assert agent.open(MODE, sealed) == mode(), "what was forged spoils nothing"


@given(st.data())
def test_no_flipped_bit_gets_through(data: st.DataObject) -> None:
    made = Keys(Path("k"), {"d": bytes(KEY_BYTES)})
    seals = [Seals(made, name, "d", passive=True, counts=Counter()) for name in ("trainer", "agent")]
    payload = bytearray(encoding.encode(seals[0].seal(MODE, mode())))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert seals[1].open(MODE, encoding.decode(MODE, bytes(payload))) == mode()  # a bit of what nobody reads
    except MessageError:
        return


def test_an_envelope_is_of_one_topic_one_device_and_one_key(key_file: Path, tmp_path: Path) -> None:
    trainer, agent = End(key_file, "trainer"), End(key_file, "agent")
    sealed = trainer.sealed(MODE, mode())
    agent.refuses(topics.build("e", "down", "mode"), sealed, "not signed with the key of e", "forged")
    agent.refuses(topics.build("d", "down", "forward"), sealed, "not signed with the key", "forged")
    make_keys.make(tmp_path / "other", ["d"])
    End(tmp_path / "other", "agent").refuses(MODE, sealed, "not signed with the key", "forged")
    agent.refuses(
        ACK, End(key_file, "trainer").sealed(ACK, Ack(session="s", of="mode", seq=1, ok=True)), "sends nothing", "forged"
    )


def test_whoever_has_the_key_may_ask_for_the_end_and_each_is_heard(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**18, 2 * 10**18, 10**9))
    monkeypatch.setattr("services.bus.sealing.time.time_ns", lambda: next(clock))
    trainer, stop = End(key_file, "trainer"), Stop(session="s", by="ada")
    sealed = [End(key_file, "operator", passive=True).sealed(STOP, stop) for _ in range(2)]  # two processes, two stops
    for one in sealed:
        assert trainer.open(STOP, one) == stop
    trainer.refuses(STOP, sealed[1], "came before", "replayed")
    trainer.refuses(STOP, sealed[0], "an earlier life", "replayed")
    trainer.refuses(STOP, stop, "not signed", "unsigned")


@pytest.mark.parametrize("topic", SEALED)
def test_a_side_with_a_key_refuses_what_is_not_signed(key_file: Path, topic: str) -> None:
    from services.bus.examples import EXAMPLES

    message = EXAMPLES[topics.travels(topic)[1]]
    End(key_file, "agent").refuses(topic, message, "not signed", "unsigned")
    assert End(None, "agent").open(topic, message) == message, "without a key all is as it was"


def test_what_nobody_acts_on_needs_no_envelope(key_file: Path) -> None:
    agent = End(key_file, "agent")
    for topic, message in (
        ("up/flow", Flow(session="", to="x", topic=ACK, taken=0)),
        ("state/agent", State(session="", service="agent", online=True)),
        ("event/forward", Timing(session="s", stage="forward", iteration=0, host_s=0.0)),
    ):
        assert agent.open(f"r2f/v1/d/{topic}", message) is message


def test_a_side_without_a_key_says_what_it_needs(key_file: Path) -> None:
    sealed = End(key_file, "trainer").sealed(MODE, mode())
    End(None, "agent").refuses(MODE, sealed, "--signing-key-file", "forged")
    assert End(None, "tap", "all", passive=True).open(MODE, sealed) == mode(), "who only watches reads it all the same"


def test_a_watcher_with_the_key_believes_no_forged_one(key_file: Path) -> None:
    watcher, sealed = End(key_file, "monitor", "d", passive=True), End(key_file, "trainer").sealed(MODE, mode())
    assert watcher.open(MODE, sealed) == mode()
    watcher.refuses(MODE, mode(), "not signed", "unsigned")
    watcher.refuses(MODE, msgspec.structs.replace(sealed, body=encoding.encode(mode(9))), "changed", "forged")


def test_none_is_taken_twice_whatever_the_order(key_file: Path) -> None:
    trainer, agent = End(key_file, "trainer"), End(key_file, "agent")
    sealed = [trainer.sealed(MODE, mode(seq)) for seq in range(2 * REORDERED + 10)]
    for i in (3, 0, 2, 1):
        assert agent.open(MODE, sealed[i]) == mode(i)
    for i in (0, 1, 2, 3):
        agent.refuses(MODE, sealed[i], "came before", "replayed")
    for one in sealed[4:]:
        agent.open(MODE, one)
    for i in (5, REORDERED + 9, 2 * REORDERED + 9):
        agent.refuses(MODE, sealed[i], "came before", "replayed")


def test_a_recorded_life_is_refused_after_both_sides_started_anew(key_file: Path) -> None:
    recorded = End(key_file, "trainer").sealed(MODE, mode(1))
    End(key_file, "agent").open(MODE, recorded)
    later = End(key_file, "trainer").sealed(MODE, mode(2))
    assert later.epoch > recorded.epoch
    End(key_file, "agent").open(MODE, later)
    End(key_file, "agent").refuses(MODE, recorded, "an earlier life of trainer", "replayed")


def test_a_clock_that_went_back_is_outlived(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = End(key_file, "agent").sealed(ACK, Ack(session="s", of="mode", seq=1, ok=True))
    monkeypatch.setattr("services.bus.sealing.time.time_ns", lambda: 0)
    assert End(key_file, "agent").sealed(ACK, Ack(session="s", of="mode", seq=1, ok=True)).epoch == first.epoch + 1


def test_where_nothing_can_be_remembered_that_is_said(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(key_file))

    monkeypatch.setattr("services.bus.sealing.write_whole", refuse)
    with structlog.testing.capture_logs() as logged:
        End(key_file, "agent")
    assert "could be replayed" in logged[0]["event"]


def test_a_memory_that_is_damaged_is_an_error(key_file: Path) -> None:
    key_file.with_name("keys.d.agent").write_text("{")
    with pytest.raises(ValueError, match=r"keys\.d\.agent"):
        End(key_file, "agent")


# ---- the file of keys ----


def test_keys_are_their_owners_alone_and_differ(key_file: Path) -> None:
    assert key_file.stat().st_mode & 0o777 == 0o600
    found = keys.read(key_file)
    assert len({found.of("d"), found.of("e")}) == 2
    assert len(found.name("d")) == 8
    assert found.name("none") == ""
    make_keys.make(key_file, ["f"])
    again = keys.read(key_file)
    assert again.of("d") == found.of("d")
    with pytest.raises(ValueError, match="device d has a key"):
        make_keys.make(key_file, ["d"])


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("", 0o600, "no key is in it"),
        ("d 00", 0o600, "line 1: expected a device and 64 hexadecimal digits"),
        (f"d {'0' * 64} more", 0o600, "line 1"),
        (f"../d {'0' * 64}", 0o600, "line 1"),
        (f"# a comment\nd {'0' * 64}\nd {'1' * 64}\n", 0o600, "line 3: device d is there twice"),
        (f"d {'0' * 64}", 0o640, "chmod 600"),
        (f"e {'0' * 64}", 0o600, "has no key of device d"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: str, mode: int, said: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(ValueError, match=said) as error:
        Bus("mqtt://127.0.0.1:1", "agent", "d", signing_key_file=path)
    assert str(path) in str(error.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ValueError, match="is no plain file"):
        keys.read(tmp_path / "pipe")


def test_the_file_may_be_named_by_the_environment(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2F_SIGNING_KEY_FILE", str(key_file))
    assert Bus("mqtt://127.0.0.1:1", "agent", "d").key_name("d") == keys.read(key_file).name("d")
    monkeypatch.setenv("R2F_SIGNING_KEY_FILE", str(key_file.with_name("none")))
    with pytest.raises(FileNotFoundError, match="none"):
        Bus("mqtt://127.0.0.1:1", "agent", "d")
    monkeypatch.delenv("R2F_SIGNING_KEY_FILE")
    assert Bus("mqtt://127.0.0.1:1", "agent", "d").key_name("d") == ""


def test_the_command_that_makes_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "services.bus.make_keys", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )

    made = run(str(path), "edge-0", "edge-1")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["edge-0", "edge-1"]
    for arguments in (
        (),
        (str(path),),
        (str(path), "a b"),
        (str(path), "a,b"),
        (str(path), "a-*"),
        (str(path), "edge-1"),
        (str(tmp_path), "x"),
        ("--help",),
    ):
        ended = run(*arguments)
        assert ended.returncode == 1
        assert len(ended.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == ["keys"]


def test_keys_that_are_made_at_once_are_all_there(tmp_path: Path) -> None:
    path, names = tmp_path / "keys", [f"edge-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: make_keys.make(path, [name]), names))
    assert all(name in keys.read(path) for name in names)


# ---- over a broker ----


async def test_over_a_broker(broker_url: str, device: str, tmp_path: Path) -> None:
    """A stranger on the broker: what it makes, changes and repeats is refused, and what is signed arrives, in chunks too."""
    path = tmp_path / "keys"
    make_keys.make(path, [device])
    outputs = encoding.inline(np.random.default_rng(0).integers(-128, 128, (300_000, 1, 1, 1), np.int8))
    whole = Outputs(session="s", iteration=0, attempt=0, outputs=outputs, labels=None)
    async with (
        Bus(broker_url, "trainer", device, signing_key_file=path) as trainer,
        Bus(broker_url, "agent", device, signing_key_file=path) as agent,
        Bus(broker_url, "tap", device, passive=True) as stranger,
    ):
        await agent.subscribe("down/mode", "down/model")
        await trainer.subscribe("up/outputs", "up/ack")
        await trainer.publish("down/mode", mode(7), retain=True)
        assert (await agent.receive(30.0))[1] == mode(7)
        await agent.publish("up/outputs", whole)
        assert (await trainer.receive(30.0))[1] == whole
        forged = EncodedModel(session="s", iteration=0, sent_at=0.0, version=9, base=0, digest=0, body=b"")
        await stranger.subscribe("down/mode")
        recorded = (await stranger.receive(30.0))[1]
        assert recorded == mode(7), "everybody may read"
        for name, message in (("down/model", forged), ("down/mode", mode(8))):
            stranger._sender.say(stranger.topic(name), message)  # as one who is not numbered, or lies about who it is
        await stranger.flush()
        await trainer.publish("down/mode", mode(9))
        assert (await agent.receive(30.0))[1] == mode(9)
        assert agent.counts["unsigned"] == 2
        assert agent.counts["bad"] == 2
