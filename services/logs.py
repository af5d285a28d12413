"""Logs of a process: to stderr, for people or as JSON lines, with nothing that a terminal would obey, and on a full disk."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import TextIO, cast

import structlog

from services.shown import plain


def configure(as_json: bool | None, level: str = "info") -> None:
    """structlog to stderr: for people on a terminal, JSON lines elsewhere, unless told."""
    lines = not sys.stderr.isatty() if as_json is None else as_json
    people = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    renderer: structlog.types.Processor = structlog.processors.JSONRenderer() if lines else people
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *([] if lines else [_plain]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, Lines())),
        cache_logger_on_first_use=True,
    )


def _plain(logger: object, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """A line of the log without what a terminal would obey: parts of it are of strangers. JSON has none as it is."""
    return {
        key: plain(value, keep="\n" if key == "exception" else "") if isinstance(value, str) else value
        for key, value in event.items()
    }


class Lines:
    """A stream of log lines that ends nobody: those that a full disk has no room for stay in its buffer or are lost, and the
    first one that it takes again is followed by a word of that.

    Without a stream it is stderr, as that is at the time: a display that draws on the terminal puts its own there.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._refused = False

    def write(self, text: str) -> None:
        self._tried(lambda stream: stream.write(text))

    def flush(self) -> None:
        if self._tried(lambda stream: stream.flush()) and self._refused:
            self._refused = False
            self.write("the disk was full; lines before this one may be missing\n")

    def _tried(self, call: Callable[[TextIO], object]) -> bool:
        try:
            call(sys.stderr if self._stream is None else self._stream)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._refused = True
            return False
        return True
