"""Chunks: any order, any repetition; nothing wrong gets through, and memory stays within the budget."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bus.chunks import CHUNK, SMALLEST, Reassembler, count_of, split
from services.bus.encoding import MessageError
from services.bus.messages import Chunk, Manifest

T = "r2f/v1/d/up/layers"


def parts(payload: bytes, chunk: int = SMALLEST) -> list[Manifest | Chunk]:
    return [part for part in split("s", payload, chunk) if isinstance(part, Manifest | Chunk)]


def payload_of(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(length)


@given(st.integers(1, 5000), st.integers(SMALLEST, 1000), st.randoms(use_true_random=False), st.integers(0, 5))
def test_any_order_and_repetition_gives_the_message_once(
    length: int, chunk: int, shuffle: random.Random, repeated: int
) -> None:
    payload = payload_of(length)
    whole = parts(payload, chunk)
    assert len(whole) == 1 + count_of(length, chunk)
    order = whole[:]
    shuffle.shuffle(order)
    # Repetitions of what came, before the last piece completes it.
    for _ in range(repeated):
        order.insert(shuffle.randrange(len(order)), order[0])
    reassembler = Reassembler()
    got = [out for part in order if (out := reassembler.add(T, part)) is not None]
    assert got[0] == payload
    assert len(got) == 1


def test_what_is_missing_is_named() -> None:
    manifest, *chunks = parts(payload_of(1000))
    reassembler = Reassembler()
    reassembler.add(T, chunks[2])
    assert reassembler.missing(T, manifest.digest) == []
    reassembler.add(T, manifest)
    assert reassembler.missing(T, manifest.digest) == [0, 1, 3]
    reassembler.add(T, chunks[0])
    assert reassembler.missing(T, manifest.digest) == [1, 3]


def test_senders_and_topics_do_not_mix() -> None:
    payload = payload_of(600)
    manifest, first, *rest = parts(payload)
    reassembler = Reassembler()
    for part in (manifest, *rest):
        assert reassembler.add(T, part, "a") is None
    assert reassembler.add(T, first, "b") is None
    assert reassembler.add("r2f/v1/e/up/layers", first, "a") is None
    assert reassembler.add(T, first, "a") == payload


def bad(reassembler: Reassembler, *messages: Manifest | Chunk) -> None:
    *before, last = messages
    assert [reassembler.add(T, message) for message in before] == [None] * len(before)
    with pytest.raises(MessageError):
        reassembler.add(T, last)
    assert reassembler.held == 0


def test_what_contradicts_itself_is_refused_and_forgotten() -> None:
    manifest, first, second, *rest = parts(payload_of(700))
    assert isinstance(manifest, Manifest)
    assert isinstance(first, Chunk)
    assert isinstance(second, Chunk)
    replace = msgspec.structs.replace
    reassembler = Reassembler(message_limit=1 << 20)
    bad(reassembler, replace(manifest, length=0))
    bad(reassembler, replace(manifest, length=(1 << 20) + 1))
    bad(reassembler, replace(manifest, chunk=SMALLEST - 1))
    bad(reassembler, replace(manifest, chunk=CHUNK + 1))
    bad(reassembler, replace(manifest, digest=b"short"))
    bad(reassembler, manifest, replace(manifest, length=701))
    bad(reassembler, manifest, replace(first, data=first.data[:-1]))
    bad(reassembler, manifest, replace(first, index=3))
    bad(reassembler, manifest, first, replace(first, data=bytes(SMALLEST)))
    bad(reassembler, first, replace(manifest, chunk=SMALLEST + 1))
    bad(reassembler, replace(first, data=b""))
    bad(reassembler, replace(first, index=2**50))
    bad(reassembler, manifest, replace(first, data=bytes(SMALLEST)), second, *rest)


def test_nothing_is_allocated_on_a_manifests_word() -> None:
    import tracemalloc

    reassembler = Reassembler()
    tracemalloc.start()
    for i in range(100):
        claim = Manifest(session="s", length=256 << 20, chunk=CHUNK, digest=i.to_bytes(16, "big"))
        assert reassembler.add(T, claim) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_flood_stays_within_the_budget_and_the_live_one_lives() -> None:
    reassembler = Reassembler(message_limit=100_000, budget=50_000)
    manifest, *chunks = parts(payload_of(20_000))
    reassembler.add(T, manifest)
    flood = 0
    for i, chunk in enumerate(chunks):
        for _ in range(7):
            flood += 1
            junk = Chunk(session="s", digest=flood.to_bytes(16, "big"), index=i, data=bytes(300))
            assert reassembler.add(T, junk, "stranger") is None
        out = reassembler.add(T, chunk)
        assert reassembler.held <= 50_000
    assert out == payload_of(20_000)
    assert reassembler.evicted > 0


def test_tiny_chunks_count_as_what_they_cost() -> None:
    reassembler = Reassembler(budget=100_000)
    tiny = [Chunk(session="s", digest=bytes(16), index=i, data=b"x") for i in range(1000)]
    for chunk in tiny[:774]:
        reassembler.add(T, chunk)
    with pytest.raises(MessageError, match="budget"):
        reassembler.add(T, tiny[774])
    assert reassembler.held == 0


def test_what_stands_still_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("services.bus.chunks.time.monotonic", lambda: now)
    reassembler = Reassembler(age_limit_s=10)
    manifest, first, *_ = parts(payload_of(700))
    reassembler.add(T, manifest)
    reassembler.add(T, first)
    now = 11.0
    reassembler.add(T, parts(payload_of(700, 1))[0])
    assert reassembler.missing(T, manifest.digest) == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 600), st.booleans()), max_size=40))
def test_any_sequence_gives_only_true_messages(sequence: list[tuple[int, int, int, bool]]) -> None:
    payloads = [payload_of(n, n) for n in (300, 512, 1500)]
    reassembler = Reassembler(message_limit=2000, budget=4000)
    for which, index, size, manifest in sequence:
        whole = parts(payloads[which])
        part: Manifest | Chunk = whole[0]
        if not manifest:
            chunk = whole[1 + index % (len(whole) - 1)]
            assert isinstance(chunk, Chunk)
            part = chunk if size > 300 else msgspec.structs.replace(chunk, index=index, data=chunk.data[:size])
        try:
            out = reassembler.add(T, part)
        except MessageError:
            continue
        finally:
            assert 0 <= reassembler.held <= 4000
        assert out is None or out == payloads[which]
