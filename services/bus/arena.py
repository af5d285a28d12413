"""Tensors by reference between the processes of one host (architecture.md, "The bus").

A sender owns one arena: a sparse file in shared memory, mapped once by it and once by each reader, so that passing a
tensor costs one copy in and none out, no system call and, once the pages are warm, no page fault. The file is::

    page 0            magic, size; 32 seats of 8 bytes, one a reader: xxh3-64 of the reader's service name
    SLOTS × 64 bytes  slot headers: generation, offset, nbytes (u64), readers expected, then one release flag a seat
    data              4 KiB aligned

Only the sender writes a slot's header; a reader writes nothing but the flag byte of its own seat, so nothing needs to
be atomic. The sender uses a slot again when as many flags are up as readers were expected, or when it is older than an age
limit (its reader is dead). Every use raises the slot's generation: an old reference is refused when opened, and
``release`` tells a reader whether the bytes it looked at were its own until the end.

The sender keeps a lock on its file as long as it lives, in any container, so that the next sender to start can tell the
files of the dead and remove them. Sender and readers are one user: the file is created 0600 and one of another owner is
refused. What that cannot stop is a reader of the same user scribbling on it; the bus is where strangers are kept out.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import stat
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import xxhash
from numpy.typing import NDArray

from services.bus.encoding import MessageError
from services.bus.messages import Ref, Tensor

SLOTS = 1023
SEATS = 32
PAGE = 4096
_MAGIC = 0x52324641524E4131  # "R2FARNA1"
_SLOT = np.dtype([("generation", "<u8"), ("offset", "<u8"), ("nbytes", "<u8"), ("readers", "<u8"), ("flags", "u1", (SEATS,))])
_TABLE = PAGE
_DATA = _TABLE + (SLOTS + 1) * _SLOT.itemsize
_NAME = re.compile(r"r2f-[A-Za-z0-9_.-]{1,58}")
_COMMIT = 1 << 20

log = structlog.get_logger(__name__)


class ArenaFull(Exception):
    """No slot or no room for a tensor right now."""


def folder() -> Path | None:
    """Where arenas lie: $R2F_SHM_DIR, else /dev/shm; None where R2F_SHM_DIR is empty, which turns them off."""
    name = os.environ.get("R2F_SHM_DIR", "/dev/shm")
    return Path(name) if name else None


def sweep(where: Path) -> list[str]:
    """Remove the arenas whose sender is dead, and return their names. Raises OSError if the folder cannot be read."""
    dead = []
    for path in where.glob("r2f-*"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # another user's, or gone meanwhile
            continue
        try:
            if os.pread(fd, 8, 0) != _MAGIC.to_bytes(8, "little"):
                continue  # somebody else's file, in a folder that holds more than arenas
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            dead.append(path.name)
        except OSError:  # its sender lives, or somebody else swept it
            continue
        finally:
            os.close(fd)
    return dead


class Arena:
    """The sending side: owns the file, hands out slots. One thread at a time."""

    def __init__(self, where: Path, name: str, size: int = 256 << 20, age_limit_s: float = 30.0) -> None:
        """``name`` must be new; ``size`` is the limit in bytes of data, taken from memory only as it is used.

        Raises ValueError for a name that cannot be one and OSError where the folder is missing or full.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name an arena")
        self.name = name
        self.age_limit_s = age_limit_s
        self._path = where / name
        self._size = _DATA + -(-size // PAGE) * PAGE
        self._fd = _own(self._path)
        try:
            os.ftruncate(self._fd, self._size)
            # Memory is reserved before it is touched: writing to a full tmpfs would be a SIGBUS, this is an OSError.
            self._committed = _DATA
            os.posix_fallocate(self._fd, 0, _DATA)
            self._map = mmap.mmap(self._fd, self._size)
        except OSError:
            os.close(self._fd)
            self._path.unlink(missing_ok=True)
            raise
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._table = self._bytes[_TABLE : _TABLE + SLOTS * _SLOT.itemsize].view(_SLOT)
        self._bytes[:16].view("<u8")[:] = (_MAGIC, self._size)
        self._free_slots = list(range(SLOTS - 1, -1, -1))
        self._holes: list[tuple[int, int]] = [(_DATA, self._size - _DATA)]
        self._used: dict[int, tuple[int, int, int, float]] = {}  # slot -> offset, room, readers, since

    @property
    def in_use(self) -> int:
        """Slots not released yet, as far as ``collect`` has seen."""
        return len(self._used)

    def fits(self, sizes: Sequence[int]) -> bool:
        """Whether arrays of so many bytes could be ``put`` one after another, as far as ``collect`` has seen."""
        holes = [length for _, length in self._holes]
        for size in sizes:
            room = _room(size)
            i = next((i for i, length in enumerate(holes) if length >= room), None)
            if i is None:
                return False
            holes[i] -= room
        return len(sizes) <= len(self._free_slots)

    def put(self, array: NDArray[Any], readers: int = 1) -> Tensor:
        """Copy an array in and return its reference, for ``readers`` services to open and release.

        Raises ArenaFull where there is no room even after collecting what was released.
        """
        room = _room(array.nbytes)
        offset = self._take(room)
        if offset is None or not self._free_slots:
            if offset is not None:
                self._give(offset, room)
            self.collect()
            offset = self._take(room)
            if offset is None or not self._free_slots:
                if offset is not None:
                    self._give(offset, room)
                raise ArenaFull(f"arena {self.name}: no room for {array.nbytes} bytes in {self._size}")
        if offset + room > self._committed:
            end = min(self._size, -(-(offset + room) // _COMMIT) * _COMMIT)
            try:
                os.posix_fallocate(self._fd, self._committed, end - self._committed)
            except OSError as error:
                self._give(offset, room)
                raise ArenaFull(f"arena {self.name}: shared memory is full ({error.strerror})") from None
            self._committed = end
        slot = self._free_slots.pop()
        header = self._table[slot]
        header["flags"] = 0
        generation = int(header["generation"]) + 1
        header["generation"] = generation
        header["offset"], header["nbytes"], header["readers"] = offset, array.nbytes, readers
        target = self._bytes[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(target, array)
        self._used[slot] = (offset, room, readers, time.monotonic())
        ref = Ref(self.name, slot, generation, offset, array.nbytes)
        return Tensor(dtype=array.dtype.name, shape=array.shape, ref=ref)  # type: ignore[arg-type]

    def collect(self) -> int:
        """Take back the slots that all readers released or that are over the age limit; returns how many were that."""
        flags = self._table["flags"].sum(axis=1, dtype=np.int64)
        oldest = time.monotonic() - self.age_limit_s
        expired = 0
        for slot, (_, _, readers, since) in list(self._used.items()):
            if flags[slot] < readers:
                if since > oldest:
                    continue
                expired += 1
            self._take_back(slot)
        if expired:
            log.warning("arena slots were never released", arena=self.name, slots=expired, age_s=self.age_limit_s)
        return expired

    def withdraw(self, ref: Ref) -> None:
        """Take a slot back although its readers may not have released it: what it held is of no use to anybody now."""
        if ref.slot in self._used and int(self._table[ref.slot]["generation"]) == ref.generation:
            self._take_back(ref.slot)

    def withdraw_all(self) -> int:
        """Take every slot back, whoever may still want it; returns how many there were."""
        count = len(self._used)
        for slot in list(self._used):
            self._take_back(slot)
        return count

    def close(self) -> None:
        """Unlink the file. Readers that still have it mapped keep their bytes."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)
        del self._table, self._bytes
        # A view handed out inside this process keeps the mapping; it goes with the view.
        with contextlib.suppress(BufferError):
            self._map.close()

    def _take(self, room: int) -> int | None:
        # First fit from the bottom keeps to pages that are warm and the memory in use small.
        for i, (offset, length) in enumerate(self._holes):
            if length >= room:
                if length == room:
                    del self._holes[i]
                else:
                    self._holes[i] = (offset + room, length - room)
                return offset
        return None

    def _take_back(self, slot: int) -> None:
        offset, room, *_ = self._used.pop(slot)
        # A reader that is late must find a slot that is no longer its own.
        self._table[slot]["generation"] += 1
        self._free_slots.append(slot)
        self._give(offset, room)

    def _give(self, offset: int, room: int) -> None:
        holes = sorted([*self._holes, (offset, room)])
        merged = [holes[0]]
        for start, length in holes[1:]:
            last, before = merged[-1]
            if last + before == start:
                merged[-1] = (last, before + length)
            else:
                merged.append((start, length))
        self._holes = merged


def _own(path: Path) -> int:
    """A new file that we hold the lock of. ``sweep`` leaves it alone meanwhile: nothing says yet that it is an arena."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd


def _room(nbytes: int) -> int:
    return max(PAGE, -(-nbytes // PAGE) * PAGE)


class _Mapped:
    """One sender's arena as a reader sees it."""

    def __init__(self, where: Path, name: str, reader: str) -> None:
        fd = os.open(where / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
                raise MessageError(f"arena {name} is not a plain file of this user")
            if info.st_size < _DATA:
                raise MessageError(f"arena {name} has {info.st_size} bytes, too few for its header")
            self.map = mmap.mmap(fd, info.st_size)
            self.bytes = np.frombuffer(self.map, np.uint8)
            magic, size = (int(v) for v in self.bytes[:16].view("<u8"))
            if magic != _MAGIC or size != info.st_size:
                raise MessageError(f"arena {name} is no arena of this version")
            self.table = self.bytes[_TABLE : _TABLE + SLOTS * _SLOT.itemsize].view(_SLOT)
            self.seat = self._sit(fd, reader)
            self.file = (info.st_dev, info.st_ino)
        finally:
            os.close(fd)

    def _sit(self, fd: int, reader: str) -> int:
        """This reader's seat: by name, so that a service that restarts sits where it sat."""
        mine = xxhash.xxh3_64_intdigest(reader.encode()) or 1
        seats = self.bytes[64 : 64 + 8 * SEATS].view("<u8")
        # The sender holds flock on the file; this other kind of lock is between the readers, for this once.
        fcntl.lockf(fd, fcntl.LOCK_EX, 8 * SEATS, 64)
        try:
            taken = seats.tolist()
            for seat in range(SEATS):
                if taken[seat] in (0, mine):
                    seats[seat] = mine
                    return seat
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN, 8 * SEATS, 64)
        raise MessageError(f"all {SEATS} seats of the arena are taken")


class Reader:
    """The receiving side: opens references to any sender's arena. ``name`` is the service's, one a host and device."""

    def __init__(self, where: Path, name: str, keep: int = 64) -> None:
        self._where = where
        self._name = name
        self._keep = keep
        self._open: dict[str, _Mapped] = {}
        self._order: deque[str] = deque()

    def open(self, tensor: Tensor) -> NDArray[Any]:
        """The read-only array behind a reference, without a copy.

        Raises MessageError where the arena is not to be found here, or the slot is another tensor's by now.
        """
        ref = tensor.ref
        if ref is None:
            raise MessageError("this tensor is inline")
        arena = self._arena(ref)
        data = arena.bytes[ref.offset : ref.offset + ref.nbytes].view(tensor.dtype).reshape(tensor.shape)
        data.flags.writeable = False
        return data

    def release(self, tensor: Tensor) -> bool:
        """Let the sender have the slot back. False where it had taken it already: what was read may have changed."""
        ref = tensor.ref
        if ref is None:
            raise MessageError("this tensor is inline")
        try:
            arena = self._arena(ref)
        except MessageError:
            return False
        arena.table[ref.slot]["flags"][arena.seat] = 1
        return True

    def close(self) -> None:
        """Unmap everything; views still held keep their own mapping alive."""
        for name in list(self._open):
            self._forget(name)

    def _arena(self, ref: Ref) -> _Mapped:
        if not _NAME.fullmatch(ref.arena):
            raise MessageError(f"{ref.arena!r} cannot name an arena")
        arena = self._open.get(ref.arena)
        if arena is None:
            self._forget_dead()
            try:
                arena = _Mapped(self._where, ref.arena, self._name)
            except OSError as error:
                raise MessageError(
                    f"arena {ref.arena} is not in {self._where} ({error.strerror}); services of one host must share "
                    "R2F_SHM_DIR, or set it empty to send tensors inline"
                ) from None
            while len(self._order) >= self._keep:
                self._forget(self._order[0])
            self._open[ref.arena] = arena
            self._order.append(ref.arena)
        if ref.slot >= SLOTS or ref.offset < _DATA or ref.offset + ref.nbytes > len(arena.bytes):
            raise MessageError(f"arena {ref.arena}: slot {ref.slot}, {ref.nbytes} bytes at {ref.offset} lie outside it")
        if ref.offset % PAGE:
            raise MessageError(f"arena {ref.arena}: offset {ref.offset} is not on a page")
        header = arena.table[ref.slot]
        if (header["generation"], header["offset"], header["nbytes"]) != (ref.generation, ref.offset, ref.nbytes):
            raise MessageError(f"arena {ref.arena}: slot {ref.slot} was given to another tensor meanwhile")
        return arena

    def _forget_dead(self) -> None:
        """Unmap the arenas whose files are gone: a file that is mapped keeps its memory, however dead its sender is."""
        for name, arena in list(self._open.items()):
            try:
                info = os.stat(self._where / name, follow_symlinks=False)
            except FileNotFoundError:
                self._forget(name)
                continue
            if (info.st_dev, info.st_ino) != arena.file:
                self._forget(name)

    def _forget(self, name: str) -> None:
        arena = self._open.pop(name)
        self._order.remove(name)
        mapped = arena.map
        del arena
        with contextlib.suppress(BufferError):
            mapped.close()
