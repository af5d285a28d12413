"""Messages too large for one packet: a Manifest, then Chunks, on the topic of the message itself (architecture.md, "The bus").

A packet of at most 127 KiB, or of two seconds of the link, lets others between and keeps the keepalive alive. A Chunk
names its transfer by digest, so that chunks may come twice, in any order and from several senders at once. Nothing is
allocated on a manifest's word: what is held are the chunks that came, and those count against one budget.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import xxhash

from services.bus.encoding import MessageError
from services.bus.messages import Chunk, Manifest, Message

CHUNK = 127 * 1024
SMALLEST = 256
LINK_SECONDS = 2.0
_OVERHEAD = 128
"""Bytes that a chunk costs us besides its data, so that a flood of tiny ones counts too."""


def chunk_size(bits_per_s: float | None = None) -> int:
    """Bytes of a chunk: 127 KiB, or what a link of this rate carries in two seconds if that is less, at least 256."""
    if bits_per_s is None:
        return CHUNK
    return max(SMALLEST, min(CHUNK, int(bits_per_s * LINK_SECONDS / 8)))


def count_of(length: int, chunk: int) -> int:
    """Chunks of a message of ``length`` bytes."""
    return -(-length // chunk)


def split(session: str, payload: bytes, chunk: int) -> Iterator[Message]:
    """The Manifest and Chunks of one encoded message."""
    digest = xxhash.xxh3_128_digest(payload)
    yield Manifest(session=session, length=len(payload), chunk=chunk, digest=digest)
    for index in range(count_of(len(payload), chunk)):
        yield Chunk(session=session, digest=digest, index=index, data=payload[index * chunk : (index + 1) * chunk])


OPEN: Final = 4096
"""Transfers under way of all senders."""
OPEN_EACH: Final = 64
"""Of one sender, which has a handful: a message a topic."""

_Key = tuple[str, str, bytes]


@dataclass
class _Transfer:
    manifest: Manifest | None = None
    parts: dict[int, bytes] = field(default_factory=dict)
    held: int = 0
    """Bytes of its chunks."""
    touched: float = 0.0

    @property
    def cost(self) -> int:
        return self.held + _OVERHEAD * (len(self.parts) + 1)


class Reassembler:
    """Transfers under way. One of them holds at most ``message_limit`` bytes, those of one sender twice that, and all of them
    ``budget``; there are no more than ``OPEN_EACH`` of a sender and ``OPEN`` in all. What is over goes, the one that stood
    still for longest first, and a sender's own before another's."""

    def __init__(self, message_limit: int = 256 << 20, budget: int = 512 << 20, age_limit_s: float = 600.0) -> None:
        """Bytes of one message, bytes of all that is held, and seconds after which a transfer that stands still goes."""
        self.message_limit = message_limit
        self.budget = budget
        self.age_limit_s = age_limit_s
        self._transfers: OrderedDict[_Key, _Transfer] = OrderedDict()
        """The one that stood still for longest first."""
        self._of: dict[str, OrderedDict[_Key, None]] = {}
        """Each sender's, likewise."""
        self._held_of: Counter[str] = Counter()
        self.evicted = 0
        """Unfinished messages given up for want of room."""
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes of the chunks held now, with what keeping them costs."""
        return self._held

    def missing(self, topic: str, digest: bytes, origin: str = "") -> list[int]:
        """Indices of the chunks that a transfer still lacks; empty where it is unknown or its manifest has not come."""
        transfer = self._transfers.get((topic, origin, digest))
        if transfer is None or transfer.manifest is None:
            return []
        total = count_of(transfer.manifest.length, transfer.manifest.chunk)
        return [index for index in range(total) if index not in transfer.parts]

    def add(self, topic: str, message: Manifest | Chunk, origin: str = "") -> bytes | None:
        """Take one in; returns the encoded message that it completes, else None. Senders cannot mix in each other's.

        Raises MessageError, and forgets the transfer, for a manifest that contradicts itself or its chunks, or is over
        the limit, for chunks over the budget, and for bytes that do not have the digest.
        """
        key = (topic, origin, message.digest)
        now = time.monotonic()
        if len(message.digest) != 16:
            raise MessageError(f"{topic}: a transfer is named by 16 bytes, not {len(message.digest)}")
        transfer = self._transfers.get(key)
        if transfer is None:
            self._expire(now)
            transfer = self._transfers[key] = _Transfer()
            self._of.setdefault(origin, OrderedDict())[key] = None
            self._count(origin, transfer.cost)
        transfer.touched = now
        self._transfers.move_to_end(key)
        self._of[origin].move_to_end(key)
        if isinstance(message, Manifest):
            self._manifest(topic, key, transfer, message)
        else:
            self._chunk(topic, key, transfer, message)
        while (oldest := self._over(origin)) is not None:
            self._drop(oldest)
            self.evicted += 1
            if oldest == key:
                raise MessageError(f"{topic}: one unfinished message is over the budget of {self.budget} bytes")
        manifest = transfer.manifest
        if manifest is None or transfer.held < manifest.length:
            return None
        self._drop(key)
        payload = b"".join(transfer.parts[index] for index in range(len(transfer.parts)))
        if xxhash.xxh3_128_digest(payload) != message.digest:
            raise MessageError(f"{topic}: {len(payload)} bytes in chunks do not have the digest of their manifest")
        return payload

    def _over(self, origin: str) -> _Key | None:
        """The transfer to give up for want of room: most often chunks replayed after their message was whole."""
        own = self._of.get(origin)
        if own and (len(own) > OPEN_EACH or self._held_of[origin] > 2 * self.message_limit + _OVERHEAD * OPEN_EACH):
            return next(iter(own))
        if self._held > self.budget or len(self._transfers) > OPEN:
            return next(iter(self._transfers))
        return None

    def _count(self, origin: str, nbytes: int) -> None:
        self._held += nbytes
        self._held_of[origin] += nbytes

    def _manifest(self, topic: str, key: _Key, transfer: _Transfer, manifest: Manifest) -> None:
        if not SMALLEST <= manifest.chunk <= CHUNK or not 0 < manifest.length <= self.message_limit:
            self._drop(key)
            raise MessageError(
                f"{topic}: a manifest of {manifest.length} bytes in chunks of {manifest.chunk} is out of bounds "
                f"(limit {self.message_limit}, chunks {SMALLEST} to {CHUNK})"
            )
        before = transfer.manifest
        if before is not None and (before.length, before.chunk) != (manifest.length, manifest.chunk):
            self._drop(key)
            raise MessageError(f"{topic}: two manifests of one transfer differ")
        transfer.manifest = manifest
        for index, part in transfer.parts.items():
            self._check(topic, key, manifest, index, part)

    def _chunk(self, topic: str, key: _Key, transfer: _Transfer, chunk: Chunk) -> None:
        if transfer.manifest is not None:
            self._check(topic, key, transfer.manifest, chunk.index, chunk.data)
        elif not 0 < len(chunk.data) <= CHUNK or (chunk.index + 1) * SMALLEST > self.message_limit + CHUNK:
            self._drop(key)
            raise MessageError(f"{topic}: chunk {chunk.index} of {len(chunk.data)} bytes is out of bounds")
        if chunk.index in transfer.parts:
            if transfer.parts[chunk.index] != chunk.data:
                self._drop(key)
                raise MessageError(f"{topic}: chunk {chunk.index} came twice, with other bytes")
            return
        if transfer.held + len(chunk.data) > self.message_limit:
            self._drop(key)
            raise MessageError(f"{topic}: chunks of one message are over the limit of {self.message_limit} bytes")
        transfer.parts[chunk.index] = chunk.data
        transfer.held += len(chunk.data)
        self._count(key[1], len(chunk.data) + _OVERHEAD)

    def _check(self, topic: str, key: _Key, manifest: Manifest, index: int, part: bytes) -> None:
        expected = min(manifest.chunk, manifest.length - index * manifest.chunk)
        if expected <= 0 or len(part) != expected:
            self._drop(key)
            raise MessageError(f"{topic}: chunk {index} has {len(part)} bytes, not the {max(0, expected)} of its manifest")

    def _drop(self, key: _Key) -> None:
        origin = key[1]
        self._count(origin, -self._transfers.pop(key).cost)
        del self._of[origin][key]
        if not self._of[origin]:
            del self._of[origin], self._held_of[origin]

    def _expire(self, now: float) -> None:
        # They are in the order in which they were touched: the first one that is young enough ends it.
        while self._transfers:
            key, transfer = next(iter(self._transfers.items()))
            if now - transfer.touched <= self.age_limit_s:
                return
            self._drop(key)
