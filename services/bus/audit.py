"""Who set which mode, model and protection, and who was refused: a JSON line each, in a file that nobody here reads
(docs/security.md, "Audit log").

It is opened for each line, so that it may be renamed and begun anew at any time. Refusals, which a stranger can cause as often
as it likes, are at most ``A_MINUTE`` lines a minute; the next one says how many were left out.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from accelsim.files import naming
from services.bus import topics
from services.bus.messages import Ack, Deploy, Message, SetMode

VARIABLE: Final = "R2F_AUDIT_LOG"
A_MINUTE: Final = 60
LONGEST: Final = 500
"""Letters of a reason."""

log = structlog.get_logger(__name__)


class Audit:
    """What one Bus, as ``service`` of ``device``, writes of that; nothing where ``path`` is None.

    ``key`` is the name of the key that is asked of every sender, empty where none is. Raises OSError that names the file where
    it cannot be written to.
    """

    def __init__(self, path: Path | None, service: str, device: str, key: str) -> None:
        self._path = path
        # A program that commands in place of a trainer has a name of its own.
        program = structlog.contextvars.get_contextvars().get("service", service)
        self._always = {"program": program, "service": service, "device": device, "key": key}
        self._minute = 0.0
        self._refusals = 0
        self._unsaid = 0
        self._failed = False
        if path is not None:
            self._append(b"")

    def told(self, topic: str, message: Message) -> None:
        """This service sends a message."""
        self._set("told", topic, message, {})

    def heard(self, topic: str, message: Message, origin: str) -> None:
        """This service takes a message of the process ``origin``."""
        self._set("heard", topic, message, {"from": "/".join(topics.SENDERS.get(topics.parse(topic).key, ())), "boot": origin})

    def refused(self, reason: str, **fields: Any) -> None:
        """This service drops a message, or is told that a command is not carried out."""
        now = time.monotonic()
        if now - self._minute >= 60:
            self._minute, self._refusals = now, 0
        self._refusals += 1
        if self._refusals > A_MINUTE:
            self._unsaid += 1
            return
        unsaid, self._unsaid = self._unsaid, 0
        self._write("refused", {"reason": reason[:LONGEST], **fields, **({"left_out_before": unsaid} if unsaid else {})})

    def _set(self, how: str, topic: str, message: Message, sender: dict[str, Any]) -> None:
        if self._path is None:
            return
        match message:
            case SetMode():
                scheme = message.scheme
                what: dict[str, Any] = {"seq": message.seq, "mode": message.mode, "rates": message.rates, "seed": message.seed}
                what |= {"protected": scheme.protected, "ports": scheme.ports, "tmr": scheme.tmr, "codec": scheme.codec}
                self._write("mode", {"how": how, "topic": topic, "session": message.session, **what, **sender})
            case Deploy():
                what = {"version": message.version, "iteration": message.iteration, "bytes": message.network.shape}
                self._write("model", {"how": how, "topic": topic, "session": message.session, **what, **sender})
            case Ack(ok=False) if message.of != "base":  # which is how a device asks for a network whole
                what = {"how": how, "topic": topic, "session": message.session, "of": message.of, "seq": message.seq}
                self.refused(message.error, **what, **sender)

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        if self._path is None:
            return
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **self._always}
        try:
            self._append(msgspec.json.encode(line | fields) + b"\n")
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.error("the audit log cannot be written: what happens from now on is not in it", reason=str(error))

    def _append(self, line: bytes) -> None:
        assert self._path is not None
        with naming(self._path):
            # Not to wait where it is a pipe that nobody reads.
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            try:
                os.write(fd, line)  # one write: lines of several processes stay whole
            finally:
                os.close(fd)


def path_of(path: Path | None) -> Path | None:
    """The file, else that of $R2F_AUDIT_LOG; None where neither is named."""
    named = os.environ.get(VARIABLE, "")
    return path if path is not None else Path(named) if named else None
