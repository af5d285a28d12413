"""What a stranger, or a full disk, may cost: resends, open transfers, shared memory."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from services.bus import Bus, arena, encoding, topics
from services.bus.arena import Arena, Reader
from services.bus.chunks import CHUNK, OPEN, OPEN_EACH, SMALLEST, Reassembler, split
from services.bus.messages import Ack, Chunk, Flow, Manifest
from services.bus.sending import AGAIN_S, RANGES, Limits, Sender
from services.bus.tensors import Tensors

ACK = topics.build("d", "up", "ack")
T = topics.build("d", "up", "layers")


class Link:
    """A connection that counts what it is given."""

    def __init__(self) -> None:
        self.sent = 0

    def send(self, topic: str, payload: bytes, qos: int, retain: bool = False) -> int:
        self.sent += 1
        return self.sent


async def test_a_flood_of_requests_sends_what_they_want_once_and_forgets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("services.bus.sending.time.monotonic", lambda: now)
    sender, link = Sender("me", Limits(), Counter()), Link()
    sender.connected(link)
    out = sender.out(ACK, topics.parse(ACK))
    for seq in range(20):
        await sender.publish(ACK, out, Ack(session="s", of="mode", seq=seq, ok=True), False)

    def acknowledge() -> None:
        for packet in range(1, link.sent + 1):
            sender.acknowledged(packet)

    acknowledge()
    for first in range(1, 1001):
        sender.flow(Flow(session="", to="me", topic=ACK, taken=0, missing=((1 + first % 20, 0),)))
        acknowledge()
    assert link.sent == 20 + 19, "the first request alone, from the second message on"
    assert len(out.wanted) <= RANGES
    sender.mend()
    assert link.sent == 20 + 19
    now += AGAIN_S
    sender.mend()
    assert link.sent == 20 + 19 + 20, "all that was wanted meanwhile, once"
    acknowledge()
    now += AGAIN_S
    sender.mend()
    assert link.sent == 20 + 19 + 20, "nobody asks any more"


def junk(number: int, nbytes: int = 1) -> Chunk:
    return Chunk(session="s", digest=number.to_bytes(16, "big"), index=0, data=bytes(nbytes))


def test_one_sender_cannot_push_out_anothers_transfer() -> None:
    reassembler = Reassembler(message_limit=1 << 20, budget=4 << 20)
    payload = np.random.default_rng(0).bytes(20 * SMALLEST)
    first, *rest = (part for part in split("s", payload, SMALLEST) if isinstance(part, Manifest | Chunk))
    reassembler.add(T, first, "honest")
    for number in range(10 * OPEN_EACH):
        reassembler.add(T, junk(number), "stranger")
    assert len(reassembler._transfers) == OPEN_EACH + 1
    for number in range(1000):  # 127 MB in all
        reassembler.add(T, junk(number, CHUNK), "stranger")
    assert reassembler.held < 3 << 20
    assert [reassembler.add(T, part, "honest") for part in rest][-1] == payload


def test_many_senders_cannot_open_more_than_there_is_room_for() -> None:
    reassembler = Reassembler()
    for number in range(OPEN + 100):
        reassembler.add(T, junk(number), f"stranger-{number}")
    assert (len(reassembler._transfers), reassembler.evicted) == (OPEN, 100)
    assert len(reassembler._of) == OPEN


def test_what_is_old_is_found_without_a_look_at_all_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: how many transfers are looked at when one is opened."""
    now = 0.0
    monkeypatch.setattr("services.bus.chunks.time.monotonic", lambda: now)
    reassembler = Reassembler(age_limit_s=10)
    for number in range(1000):
        reassembler.add(T, junk(number), f"s-{number}")
    looked = 0

    class Counting(type(reassembler._transfers)):  # type: ignore[misc]
        def items(self) -> Any:
            nonlocal looked
            for item in super().items():
                looked += 1
                yield item

    reassembler._transfers = Counting(reassembler._transfers)
    now = 5.0
    for number in range(10):
        reassembler.add(T, junk(2000 + number), f"s-{number}")
    assert looked == 10
    now = 11.0
    reassembler.add(T, junk(3000), "s")
    assert len(reassembler._transfers) == 11


def test_a_sweep_that_comes_between_takes_no_living_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock: Callable[[int, int], None] = fcntl.flock
    swept: list[list[str]] = []

    def late(fd: int, how: int) -> None:
        if how == fcntl.LOCK_EX:  # the file is there and nobody holds it yet
            swept.append(arena.sweep(tmp_path))
        lock(fd, how)

    monkeypatch.setattr("services.bus.arena.fcntl.flock", late)
    sender = Arena(tmp_path, "r2f-a", 1 << 20)
    monkeypatch.undo()
    assert swept == [[]]
    array = np.arange(10_000, dtype=np.int32)
    np.testing.assert_array_equal(Reader(tmp_path, "reader").open(sender.put(array)), array)
    assert arena.sweep(tmp_path) == []
    sender.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_full_shared_memory_sends_inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setenv("R2F_SHM_DIR", str(tmp_path))
    counts: Counter[str] = Counter()
    tensors = Tensors("r2f-a", "d/agent", 1 << 20, 30.0, (), counts)

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("services.bus.arena.os.posix_fallocate", full)
    array = np.ones(10_000, np.int8)
    with structlog.testing.capture_logs() as logged:
        assert tensors.share(array).ref is None
    assert (counts["arena_full"], list(tmp_path.iterdir())) == (1, [])
    assert str(tmp_path) in logged[0]["reason"]
    monkeypatch.undo()
    monkeypatch.setenv("R2F_SHM_DIR", str(tmp_path))
    assert tensors.share(array).ref is not None, "there is room again"
    tensors.close()


def test_a_folder_that_is_not_there_is_no_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2F_SHM_DIR", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="none"):
        Tensors("r2f-a", "d/agent", 1 << 20, 30.0, (), Counter()).share(np.ones(10_000, np.int8))


def mapped(name: str) -> int:
    return sum(name in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_arenas_of_the_dead_are_unmapped(tmp_path: Path) -> None:
    reader = Reader(tmp_path, "reader")
    array = np.ones(10_000, np.int8)
    for number in range(3):
        sender = Arena(tmp_path, f"r2f-unmapped-{number}", 1 << 20)
        tensor = sender.put(array)
        assert reader.open(tensor).sum() == 10_000
        assert reader.release(tensor)
        sender.close()
    sender = Arena(tmp_path, "r2f-unmapped-living", 1 << 20)
    reader.open(sender.put(array))
    assert [mapped(f"r2f-unmapped-{number}") for number in range(3)] == [0, 0, 0]
    assert mapped("r2f-unmapped-living") > 0
    sender.close()
    reader.close()


async def test_a_mistake_of_ours_on_one_message_does_not_end_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = Bus("mqtt://127.0.0.1:1", "trainer", "d")
    good = encoding.encode(Ack(session="s", of="mode", seq=1, ok=True))
    take = bus._receiver.take

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(bus._receiver, "take", broken)
    with structlog.testing.capture_logs() as logged:
        bus._arrived(ACK, good, False)
    assert logged[0]["event"] == "message failed"
    assert bus.counts["bad"] == 1
    monkeypatch.setattr(bus._receiver, "take", take)
    bus._arrived(ACK, good, False)
    assert (await bus.receive(5.0))[0] == ACK
    await bus._stop()
