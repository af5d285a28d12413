"""What a process does with the memory of arrays that it has freed: called first thing in a program, before any thread starts.

By default glibc gives arrays above a threshold that it adapts (up to 32 MB) back to the system at once and keeps the rest
for the thread that freed them. Neither fits here. A device must be small; a server that trains takes the same hundreds of
megabytes every iteration, and fresh pages cost it a fifth of its time. Another C library is left as it is.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def give_memory_back() -> None:
    """Have arrays of 1 MiB and more returned to the system when they are freed: for a service of the device."""
    _mallopt((_M_MMAP_THRESHOLD, 1 << 20))


def keep_memory() -> None:
    """Have freed memory kept for the next array, whichever thread that is on: for a process that trains.

    It then holds as much as it ever needed at once.
    """
    # Threads take turns with the steps of a run, so memory that each kept for itself would be needed again by the next.
    _mallopt((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))


def resident() -> int:
    """Bytes of this process that are in memory now (Linux); 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _mallopt(*settings: tuple[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in settings:
            mallopt(name, value)
