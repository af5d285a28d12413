"""Signed messages: the one place where an envelope is sealed and opened (docs/security.md, "Signed messages").

A message that services act on goes inside a ``Sealed``, whose code (HMAC-SHA256, its first 16 bytes) is over the topic, the
sender's service, its epoch, its count on that topic, and the encoded message. So neither a broker nor a bridge can make one,
change one, or move one to another topic or device. Nor can it have one taken twice: an epoch is one life of a service's process
and grows from one to the next, a count is used once in an epoch. The last epoch that was heard of each sender is kept in a file
beside the key, so that a recorded life is refused after a restart, too.

A tensor by reference is not hashed: it never leaves the memory of the host. Inline tensors are part of the encoded message.
"""

from __future__ import annotations

import hmac
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import structlog

from accelsim.files import write_whole
from services.bus import encoding, topics
from services.bus.encoding import MessageError
from services.bus.keys import OPTION, Keys
from services.bus.messages import Count, Message, Sealed

PREFIX: Final = b"r2f-sealed-1\0"
REORDERED: Final = 1024
"""Messages of one sender on one topic that may come in another order: chunks let smaller ones pass."""

log = structlog.get_logger(__name__)


class Remembered(msgspec.Struct, forbid_unknown_fields=True):
    """What is remembered from one life of a service to the next: its own epoch, and the last one of each device's service."""

    own: Count = 0
    heard: dict[str, Count] = {}


@dataclass(slots=True)
class Heard:
    """What has come of one sender on one topic in its epoch."""

    epoch: int
    highest: int = 0
    seen: set[int] = field(default_factory=set)
    """Counts of the last ``REORDERED``."""


def code(key: bytes, topic: str, by: str, epoch: int, count: int, body: bytes) -> bytes:
    """The 16 bytes that only who has the key can make."""
    head = b"%s%s\0%s\0%s%s" % (PREFIX, topic.encode(), by.encode(), epoch.to_bytes(8, "big"), count.to_bytes(8, "big"))
    made = hmac.new(key, head, "sha256")
    made.update(body)  # not copied: it may be a model
    return made.digest()[: Sealed.MAC]


class Seals:
    """What one Bus seals and opens, as ``service`` of ``device``. ``counts`` gets unsigned, forged and replayed.

    ``passive``: a watcher, which reads what it has no key for; it acts on nothing. Raises ValueError and OSError for a key file
    that cannot be used.
    """

    def __init__(self, keys: Keys, service: str, device: str, *, passive: bool, counts: Counter[str]) -> None:
        self._keys = keys
        self._service = service
        self._passive = passive
        self._counts = counts
        self._sent: Counter[str] = Counter()
        self._heard: dict[tuple[str, str], Heard] = {}
        self._file: Path | None = None
        self._memory = Remembered()
        if keys and not passive:
            keys.of(device)  # a service without its device's key could do nothing
            self._remember(keys.path.with_name(f"{keys.path.name}.{device}.{service}"))
        elif keys:
            self._memory.own = _now()  # or the second ``r2f stop`` would look like the first one, recorded and sent again

    def seal(self, topic: str, message: Message) -> Message:
        """The message in its envelope; as it is where there are no keys. Raises MessageError for a device without one."""
        if not self._keys:
            return message
        try:
            key = self._keys.of(topics.parse(topic).device)
        except ValueError as error:
            raise MessageError(f"{topic}: {error}") from None
        body, epoch = encoding.encode(message), self._memory.own
        self._sent[topic] += 1
        count = self._sent[topic]
        mac = code(key, topic, self._service, epoch, count, body)
        return Sealed(session="", by=self._service, epoch=epoch, count=count, mac=mac, body=body)

    def open(self, topic: str, message: Message) -> Message:
        """The message of an envelope, or one that needs none.

        Raises MessageError for what is not signed, was signed with another key, or has come before.
        """
        if not encoding.is_sealed_topic(topic):
            return message
        device = topics.parse(topic).device
        if not isinstance(message, Sealed):
            if not self._keys or (self._passive and device not in self._keys):
                return message
            self._counts["unsigned"] += 1
            raise MessageError(f"{topic}: not signed, and here signed messages alone are taken; give its sender {OPTION}")
        if device in self._keys:
            self._check(topic, device, message)
        elif not self._passive:
            self._counts["forged"] += 1
            raise MessageError(
                f"{topic}: signed, and there is no key of {device} here to tell by whom; give this service {OPTION}"
            )
        return encoding.decode(topic, message.body, inside=True)

    def _check(self, topic: str, device: str, sealed: Sealed) -> None:
        mac = code(self._keys.of(device), topic, sealed.by, sealed.epoch, sealed.count, sealed.body)
        if not hmac.compare_digest(mac, sealed.mac):
            self._counts["forged"] += 1
            raise MessageError(f"{topic}: not signed with the key of {device}, or changed on the way")
        senders = topics.SENDERS.get(topics.parse(topic).key, ())
        if senders and sealed.by not in senders:  # none are named where whoever has the key may send
            self._counts["forged"] += 1
            raise MessageError(f"{topic}: signed by {sealed.by!r}, who sends nothing there")
        sender = f"{device}/{sealed.by}"
        last = self._memory.heard.get(sender, 0)
        if sealed.epoch < last:
            self._counts["replayed"] += 1
            raise MessageError(
                f"{topic}: of an earlier life of {sealed.by} (epoch {sealed.epoch}, the last one is {last}): recorded and sent "
                "again, or its clock is behind"
            )
        if sealed.epoch > last:
            self._memory.heard[sender] = sealed.epoch
            self._write()
        heard = self._heard.get((topic, sealed.by))
        if heard is None or heard.epoch != sealed.epoch:
            heard = self._heard[topic, sealed.by] = Heard(sealed.epoch)
        if sealed.count in heard.seen or sealed.count <= heard.highest - REORDERED:
            self._counts["replayed"] += 1
            raise MessageError(f"{topic}: number {sealed.count} of {sealed.by} came before: recorded and sent again")
        heard.seen.add(sealed.count)
        if sealed.count > heard.highest:
            heard.highest = sealed.count
            if len(heard.seen) > 2 * REORDERED:
                heard.seen = {count for count in heard.seen if count > heard.highest - REORDERED}

    def _remember(self, path: Path) -> None:
        try:
            self._memory = msgspec.json.decode(path.read_bytes(), type=Remembered)
        except FileNotFoundError:
            self._memory = Remembered()
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}: {error}; remove it, and messages from before its removal could be replayed") from None
        self._memory.own = max(_now(), self._memory.own + 1)
        self._file = path
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            write_whole(self._file, msgspec.json.encode(self._memory), mode=0o600)
        except OSError as error:
            self._file = None
            log.warning(
                "what was heard cannot be remembered: messages from before this start could be replayed", reason=str(error)
            )


def _now() -> int:
    return time.time_ns() // 1_000_000
