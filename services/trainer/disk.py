"""Writing to a disk that may be full: the trainer waits for room, as it waits for a broker."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")
ROOM_S: Final = 600.0
"""How long to wait for room."""
PAUSE_S: Final = 0.5
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


async def written(write: Callable[[], T], *, aside: bool = False) -> T:
    """What ``write`` gives, once the disk has room for it; ``aside`` runs it in a thread.

    It is called again from the beginning, so it must leave nothing half done. Raises what it raises, of a full disk after
    ``ROOM_S``.
    """
    since = time.monotonic()
    said = False
    while True:
        try:
            return await asyncio.to_thread(write) if aside else write()
        except OSError as error:
            if error.errno not in FULL or time.monotonic() - since > ROOM_S:
                raise
            if not said:
                log.error("disk full, waiting for room", error=str(error), at_most_s=ROOM_S)
            said = True
        await asyncio.sleep(PAUSE_S)
