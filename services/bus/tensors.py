"""Tensors between services of one host by reference, through shared memory: sharing, waiting for room, opening, releasing."""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from services.bus import arena as arenas
from services.bus import encoding
from services.bus.encoding import MessageError
from services.bus.messages import State, Tensor

SMALL_TENSOR: Final = 2048
"""Bytes under which a tensor travels inline: a slot of the arena would cost more."""

log = structlog.get_logger(__name__)


class Tensors:
    """The tensors that one service shares, in an arena of ``nbytes`` named after ``name``, and those that it reads.

    ``nbytes`` 0 sends all inline. ``age_s``: after which a slot is taken back from a reader that is silent. ``reader`` is the
    name under which this service reads those of others. ``readers``: topics of the States of those who read ours. ``counts``
    gets ``arena_full``.
    """

    def __init__(self, name: str, reader: str, nbytes: int, age_s: float, readers: Iterable[str], counts: Counter[str]) -> None:
        self.readers = dict.fromkeys(readers, "")
        """Each one's boot, as last heard."""
        self._name = name
        self._reader_name = reader
        self._nbytes = nbytes
        self._age_s = age_s
        self._counts = counts
        self._where = arenas.folder() if nbytes else None
        self._arena: arenas.Arena | None = None
        self._reader: arenas.Reader | None = None

    def share(self, array: NDArray[Any], readers: int = 1) -> Tensor:
        """A tensor for a message that stays on this host: by reference, for ``readers`` services to open and release.

        Inline instead where it is small, arenas are off, or the arena is full (counted as ``arena_full``).
        """
        array = np.asarray(array)
        if self._where is None or array.nbytes < SMALL_TENSOR:
            return encoding.inline(array)
        if array.dtype.name not in ("int8", "uint8", "int32", "int64", "float32"):
            raise TypeError(f"a tensor cannot be {array.dtype}; use int8, uint8, int32, int64 or float32")
        try:
            if self._arena is None:
                self._arena = self._made(self._where)
            return self._arena.put(array, readers)
        except arenas.ArenaFull as error:
            self._counts["arena_full"] += 1
            if self._counts["arena_full"] in (1, 10, 100) or self._counts["arena_full"] % 1000 == 0:
                log.warning("tensor sent inline", reason=str(error), times=self._counts["arena_full"])
            return encoding.inline(array)

    def _made(self, where: Path) -> arenas.Arena:
        """A new arena. Raises ArenaFull where there is no memory for one now, OSError where the folder is none of ours."""
        arenas.sweep(where)
        try:
            return arenas.Arena(where, self._name, self._nbytes, self._age_s)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
                raise
            raise arenas.ArenaFull(f"{where}: shared memory is full ({error.strerror})") from None

    async def room(self, *sizes: int) -> None:
        """Wait until the readers have given back enough of the arena for tensors of so many bytes to be shared.

        So a sender that is faster than its readers slows down, and its memory stays under ``nbytes``. Raises ValueError where
        that would never be enough. After ``age_s`` it is plain that they will not, and it returns.
        """
        if self._where is not None and sum(sizes) > self._nbytes:
            needed = math.ceil(sum(sizes) / 2**20)
            raise ValueError(f"{needed} MiB of tensors at once do not fit --arena-mb {self._nbytes >> 20}; raise it")
        deadline = time.monotonic() + self._age_s
        while self._arena is not None and not self._arena.fits(sizes) and time.monotonic() < deadline:
            self._arena.collect()
            if not self._arena.fits(sizes):
                await asyncio.sleep(0.002)

    def withdraw(self, tensor: Tensor) -> None:
        """Take back a tensor that was shared here: whoever has not read it yet never will."""
        if tensor.ref is not None and self._arena is not None and tensor.ref.arena == self._arena.name:
            self._arena.withdraw(tensor.ref)

    def withdraw_all(self) -> int:
        """Take back every tensor that was shared here, as ``withdraw`` does; returns how many there were."""
        return 0 if self._arena is None else self._arena.withdraw_all()

    def reader_told(self, topic: str, state: State) -> None:
        """A service's State. A reader of ours that started anew knows nothing of what was shared: all is taken back."""
        known = self.readers.get(topic)
        if known is None or not state.online or known == state.boot:
            return
        self.readers[topic] = state.boot
        if known and (taken := self.withdraw_all()):
            log.info("a reader started anew, its tensors are taken back", reader=state.service, slots=taken)

    def open(self, tensor: Tensor) -> NDArray[Any]:
        """The read-only array of a tensor, without a copy. By reference it is good until ``release``.

        Raises MessageError where the slot was given away meanwhile, or is not of this host: drop the message.
        """
        return encoding.view(tensor) if tensor.ref is None else self._reading().open(tensor)

    def release(self, tensor: Tensor) -> bool:
        """Give a tensor's slot back to its sender, once the array is no longer looked at.

        False where the sender had given up waiting and taken it: then what was read may have changed under the reader.
        """
        return True if tensor.ref is None else self._reading().release(tensor)

    def close(self) -> None:
        """Remove the arena and unmap those of others."""
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _reading(self) -> arenas.Reader:
        if self._reader is None:
            where = arenas.folder()
            if where is None:
                raise MessageError("a tensor came by reference, and R2F_SHM_DIR is empty here; set it as the sender's")
            self._reader = arenas.Reader(where, self._reader_name)
        return self._reader
