"""The parts of the Bus alone, without a broker: what is sent, received, subscribed to, shared."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from services.bus import BusError, MessageError, encoding, topics
from services.bus.address import broker_address
from services.bus.messages import Ack, Flow, Manifest, Outputs, State
from services.bus.receiving import Receiver
from services.bus.sending import OFTEN, UNACKNOWLEDGED, WINDOW, Limits, Sender, limits
from services.bus.subscriptions import Subscriptions, checked
from services.bus.tensors import Tensors

ACK = topics.build("d", "up", "ack")
OUTPUTS = topics.build("d", "up", "outputs")
ADDRESS = broker_address("mqtt://user:secret@host:1")


def ack(seq: int) -> Ack:
    return Ack(session="s", of="mode", seq=seq, ok=True)


def outputs(nbytes: int) -> Outputs:
    array = np.random.default_rng(nbytes).integers(-128, 128, (nbytes, 1, 1, 1), np.int8)
    return Outputs(session="s", iteration=0, attempt=0, outputs=encoding.inline(array), labels=None)


# -- sending ------------------------------------------------------------------------------------------------------------


class Link:
    """A connection that keeps what it is given."""

    def __init__(self) -> None:
        self.packets: list[tuple[str, bytes, int, bool]] = []

    def send(self, topic: str, payload: bytes, qos: int, retain: bool = False) -> int:
        self.packets.append((topic, payload, qos, retain))
        return len(self.packets)

    def numbers(self) -> list[int]:
        return [encoding.stamp(payload)[1] for _, payload, _, _ in self.packets if encoding.stamp(payload)]  # type: ignore[index]


class Sending:
    """A sender, its link, and publishing on ``up/ack``."""

    def __init__(self, given: Limits | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.sender = Sender("me", given or Limits(), self.counts)
        self.link = Link()
        self.sender.connected(self.link)

    async def acks(self, *seqs: int) -> None:
        out = self.sender.out(ACK, topics.parse(ACK))
        for seq in seqs:
            await self.sender.publish(ACK, out, ack(seq), False)

    def flow(self, taken: int, *missing: tuple[int, int], to: str = "me") -> None:
        self.sender.flow(Flow(session="", to=to, topic=ACK, taken=taken, missing=missing))


async def test_what_is_not_acknowledged_is_sent_again_in_order() -> None:
    sending = Sending()
    await sending.acks(0, 1, 2, 3)
    sending.sender.acknowledged(2)
    sending.sender.acknowledged(99)  # nobody's
    sending.sender.disconnected()
    await sending.acks(4)
    sending.sender.acknowledged(1)  # of the connection that is gone
    link = Link()
    sending.sender.connected(link)
    assert link.numbers() == [1, 3, 4, 5]
    for packet in range(1, 5):
        sending.sender.acknowledged(packet)
    await asyncio.wait_for(sending.sender.flush(), 60)
    assert sending.sender.largest() is None


async def test_a_window_that_is_full_is_waited_for() -> None:
    sending = Sending()
    publishing = asyncio.create_task(sending.acks(*range(UNACKNOWLEDGED + 1)))
    await asyncio.sleep(0.01)
    assert len(sending.link.packets) == UNACKNOWLEDGED
    sending.sender.acknowledged(1)
    await asyncio.wait_for(publishing, 60)
    sending.sender.fail(BusError("no more"))
    for waiting in (sending.acks(0), sending.sender.flush()):
        with pytest.raises(BusError, match="no more"):
            await waiting


async def test_credit_of_another_is_none() -> None:
    sending = Sending()
    await sending.acks(0)
    sending.flow(1, to="other")
    sending.flow(2)  # more than there are
    out = sending.sender.out(ACK, topics.parse(ACK))
    assert not out.credited
    sending.flow(1)
    assert out.credited
    publishing = asyncio.create_task(sending.acks(*range(1, 2 + WINDOW)))
    await asyncio.sleep(0.01)
    assert out.n == 1 + WINDOW
    sending.flow(2)
    await asyncio.wait_for(publishing, 60)


async def test_a_packet_that_is_asked_for_again_and_again_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker acknowledged it each time, and passed on what came later."""
    monkeypatch.setattr("services.bus.sending.AGAIN_S", 0.0)
    sending = Sending()
    await sending.acks(0, 1, 2)
    with structlog.testing.capture_logs() as logged:
        for i in range(OFTEN + 3):
            for packet in range(1, len(sending.link.packets) + 1):
                sending.sender.acknowledged(packet)
            assert len(logged) == (i >= OFTEN)
            sending.flow(1, (2, 2))
            sending.flow(1, (2, 2))  # it is under way
    assert sending.link.numbers() == [1, 2, 3, *[2] * (OFTEN + 3)]
    assert (logged[0]["log_level"], logged[0]["topic"]) == ("error", ACK)
    assert logged[0]["bytes"] == len(sending.link.packets[1][1])
    assert "R2F_PACKET_BYTES" in logged[0]["event"]


async def test_chunks_and_what_cannot_be_cut() -> None:
    sending = Sending(Limits(chunk=512, link_chunk=300, message=5000))
    out = sending.sender.out(OUTPUTS, topics.parse(OUTPUTS))
    size = await sending.sender.publish(OUTPUTS, out, outputs(2000), False)
    assert size == sum(len(payload) for _, payload, _, _ in sending.link.packets)
    first, *chunks = [encoding.decode(topic, payload) for topic, payload, _, _ in sending.link.packets]
    assert isinstance(first, Manifest)
    assert (first.chunk, len(chunks)) == (300, -(-first.length // 300))
    with pytest.raises(MessageError, match="over the limit of 5000"):
        await sending.sender.publish(OUTPUTS, out, outputs(6000), False)
    with pytest.raises(MessageError, match="cannot be retained"):
        await sending.sender.publish(OUTPUTS, out, outputs(2000), True)


async def test_a_new_broker_is_told_what_is_retained_and_the_last_of_each_topic() -> None:
    sending = Sending()
    await sending.acks(0, 1)
    sending.sender.say(topics.build("d", "state", "agent"), State(session="", service="agent", online=True), retain=True)
    for packet in (1, 2, 3):
        sending.sender.acknowledged(packet)
    link = Link()
    sending.sender.connected(link)
    sending.sender.repeat()
    assert [(topic, retain) for topic, _, _, retain in link.packets] == [
        (topics.build("d", "state", "agent"), True),
        (ACK, False),
    ]
    assert link.numbers() == [2]


def test_limits_of_a_thin_link_and_of_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits(None, 1 << 20) == Limits(message=1 << 20)
    thin = limits(50_000, 1 << 20)
    assert (thin.chunk, thin.link_chunk, thin.unacknowledged) == (127 * 1024, 12_500, 50_000)
    assert thin.link_wait_s == 10 + WINDOW * 2
    monkeypatch.setenv("R2F_PACKET_BYTES", "8192")
    monkeypatch.setenv("R2F_LINK_BITS_PER_S", "50000")
    assert limits(None, 1)[:2] == (8192 - 512, 8192 - 512)


# -- receiving ----------------------------------------------------------------------------------------------------------


class Receiving:
    """A receiver and what it answers."""

    def __init__(self, *, passive: bool = False, inbox: int = 1 << 20, link_s: float = 0.0) -> None:
        self.counts: Counter[str] = Counter()
        self.answers: list[Flow] = []
        self.receiver = Receiver(
            lambda _, flow: self.answers.append(flow),
            session="s",
            passive=passive,
            message_limit=1 << 20,
            inbox_limit=inbox,
            counts=self.counts,
            link_s=link_s,
        )

    def take(self, *numbers: int, origin: str = "o", late: bool = False, size: int = 10) -> None:
        for n in numbers:
            message = ack(n)
            message.origin, message.n = origin, n
            self.receiver.take(ACK, message, size, retained=False, late=late)

    async def read(self) -> list[int]:
        found = []
        while not self.receiver.waits():
            _, message = await self.receiver.next()
            assert isinstance(message, Ack)
            found.append(message.seq)
        return found


async def test_each_once_and_in_order() -> None:
    receiving = Receiving()
    receiving.take(1, 2, 2, 5, 4, 1)
    assert await receiving.read() == [1, 2]
    assert receiving.answers[-1].missing == ((3, 4),)
    receiving.take(3)
    assert await receiving.read() == [3, 4, 5]
    assert receiving.counts == {"received": 5, "duplicate": 2}


async def test_a_sender_that_was_back_before_us_is_asked_for_its_beginning() -> None:
    """It had 256 messages under way, which the broker took and passed on to nobody, and has sent more since."""
    receiving = Receiving()
    receiving.take(300, late=True)
    receiving.take(5000, origin="old", late=True)
    receiving.take(7, origin="known")
    assert await receiving.read() == [5000, 7]
    assert (receiving.answers[0].to, receiving.answers[0].missing) == ("o", ((1, 299),))
    receiving.take(*range(1, 300))
    assert await receiving.read() == list(range(1, 301))


async def test_a_gap_is_asked_for_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    receiving = Receiving()
    receiving.take(1, 3)
    now = time.monotonic()
    monkeypatch.setattr("services.bus.receiving.time.monotonic", lambda: now + 2)
    receiving.receiver.mend(5)
    assert [answer.missing for answer in receiving.answers] == [((2, 2),)] * 2
    monkeypatch.setattr("services.bus.receiving.time.monotonic", lambda: now + 6)
    receiving.receiver.mend(5)
    assert await receiving.read() == [1, 3]
    assert receiving.counts["lost"] == 1


async def test_over_a_thin_link_a_gap_is_asked_for_once_and_waited_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again waits behind what is on the link: asked for each second it would come a hundred times."""
    receiving = Receiving(link_s=128)
    receiving.take(1, 3)
    now = time.monotonic()
    for later, asked in ((2, 1), (6, 1), (100, 1), (128, 1), (130, 2), (132, 2)):
        monkeypatch.setattr("services.bus.receiving.time.monotonic", lambda later=later: now + later)
        receiving.receiver.mend(5)
        receiving.take(3 + later)
        assert len(receiving.answers) == asked, f"{later} s later"
        assert receiving.counts["lost"] == 0
    monkeypatch.setattr("services.bus.receiving.time.monotonic", lambda: now + 134)
    receiving.receiver.mend(5)
    assert receiving.counts["lost"] == 1


async def test_who_sends_before_it_has_the_name() -> None:
    receiving = Receiving()
    for n in (1, 2):
        receiving.receiver.foreign(ACK, "o", n)
    receiving.receiver.foreign(ACK, "far", 5000)
    receiving.receiver.foreign(ACK, "unnumbered", 0)
    assert receiving.answers == []
    receiving.receiver.named("o")
    receiving.receiver.named("o")
    receiving.receiver.named("far")
    receiving.receiver.named("unnumbered")
    receiving.receiver.named("nobody")
    assert [(answer.to, answer.taken, answer.missing) for answer in receiving.answers] == [
        ("o", 0, ((1, 0),)),
        ("far", 4999, ((5000, 0),)),
    ]
    receiving.take(3)
    assert await receiving.read() == []
    receiving.take(1, 2)
    assert await receiving.read() == [1, 2, 3]
    assert receiving.counts["foreign"] == 4


async def test_a_full_inbox_refuses_and_asks_again() -> None:
    receiving = Receiving(inbox=100)
    receiving.take(*range(1, 15), size=10)
    assert receiving.counts["refused"] == 3
    assert await receiving.read() == list(range(1, 12))
    assert (receiving.answers[-1].taken, receiving.answers[-1].missing) == (11, ((12, 0),))


async def test_a_watcher_asks_nobody() -> None:
    receiving = Receiving(passive=True)
    receiving.take(4, 5, 9)
    assert await receiving.read() == [4, 5, 9]
    assert receiving.answers == []


async def test_a_failure_comes_after_what_arrived() -> None:
    receiving = Receiving()
    receiving.take(1)
    receiving.receiver.fail(BusError("no more"))
    assert await receiving.read() == [1]
    with pytest.raises(BusError, match="no more"):
        await receiving.receiver.next()


# -- subscriptions ------------------------------------------------------------------------------------------------------


class Broker:
    """Grants what is asked for but ``forbidden``; mute ones never answer."""

    def __init__(self, forbidden: str = "", *, mute: bool = False) -> None:
        self.asked: list[str] = []
        self.forbidden = forbidden
        self.mute = mute

    async def subscribe(self, topic: Any, *, timeout: float | None = None) -> list[int]:
        self.asked += [pattern for pattern, _ in topic]
        if self.mute:
            await asyncio.Event().wait()
        return [0x80 if pattern == self.forbidden else qos for pattern, qos in topic]


async def test_patterns_are_subscribed_to_once_and_on_every_connection() -> None:
    subscriptions = Subscriptions(ADDRESS)
    await subscriptions.add(["a", "b", "a"])
    first = Broker()
    await subscriptions.connected(first)
    await subscriptions.add(["b", "c"])
    assert first.asked == ["a", "b", "c"]
    subscriptions.disconnected()
    await subscriptions.add(["d"])
    second = Broker()
    await subscriptions.connected(second)
    assert second.asked == ["a", "b", "c", "d"]
    subscriptions.wanted.add("a/+/#")
    assert subscriptions.asked_for("a/b/c/d")
    assert not subscriptions.asked_for("b")
    assert not subscriptions.resumed("a/b")
    subscriptions.disconnected()
    await subscriptions.connected(Broker())
    assert [subscriptions.resumed(topic) for topic in ("a/b", "a/b", "b")] == [True, True, False]


async def test_what_is_not_allowed() -> None:
    subscriptions = Subscriptions(ADDRESS)
    await subscriptions.connected(Broker("secret"))
    with pytest.raises(BusError, match=r"broker mqtt://…@host:1 does not allow user to subscribe to secret"):
        await subscriptions.add(["a", "secret"])


async def test_a_connection_that_breaks_under_a_subscription() -> None:
    subscriptions = Subscriptions(ADDRESS)
    await subscriptions.connected(Broker(mute=True))
    adding = asyncio.create_task(subscriptions.add(["a"]))
    await asyncio.sleep(0.01)
    subscriptions.disconnected()
    await asyncio.wait_for(adding, 60)
    again = Broker()
    await subscriptions.connected(again)
    assert again.asked == ["a"]


@pytest.mark.parametrize("pattern", ["", "a//b", "a/#/b", "a#", "a+/b", "#/"])
def test_a_pattern_that_is_none(pattern: str) -> None:
    with pytest.raises(ValueError, match="is no topic pattern"):
        checked(pattern)


# -- tensors ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensors:
    monkeypatch.setenv("R2F_SHM_DIR", str(tmp_path))
    return Tensors("r2f-agent-x", "d/agent", 64 << 10, 5.0, ["state of the voter"], Counter())


def test_a_reader_that_starts_anew(shared: Tensors) -> None:
    reader = Tensors("r2f-voter-x", "d/voter", 0, 5.0, (), Counter())
    shared.reader_told("state of the voter", State(session="", service="voter", online=True, boot="first"))
    array = np.arange(4096, dtype=np.int32)
    tensor = shared.share(array)
    assert tensor.ref is not None
    np.testing.assert_array_equal(reader.open(tensor), array)
    for state in (("voter", "first", True), ("voter", "first", False), ("voter", "second", False)):
        shared.reader_told("state of the voter", State(session="", service=state[0], boot=state[1], online=state[2]))
    shared.reader_told("state of another", State(session="", service="codec-device", online=True, boot="second"))
    assert reader.release(shared.share(array)), "nothing of that is a start"
    shared.reader_told("state of the voter", State(session="", service="voter", online=True, boot="second"))
    assert not reader.release(tensor)
    shared.close()
    reader.close()


def test_what_goes_inline(shared: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared.share(np.zeros(2047, np.int8)).ref is None
    assert shared.share(np.zeros(2048, np.int8)).ref is not None
    assert shared.share(np.zeros(128 << 10, np.int8)).ref is None
    assert shared._counts["arena_full"] == 1
    with pytest.raises(TypeError, match="cannot be float64"):
        shared.share(np.zeros(4096))
    by_reference = shared.share(np.zeros(4096, np.int8))
    shared.close()
    monkeypatch.setenv("R2F_SHM_DIR", "")
    other = Tensors("r2f-voter-x", "d/voter", 64 << 10, 5.0, (), Counter())
    assert other.share(np.zeros(4096, np.int8)).ref is None
    with pytest.raises(MessageError, match="R2F_SHM_DIR is empty here"):
        other.open(by_reference)
