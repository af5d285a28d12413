"""Output arrays whose memory is used again, because fresh pages cost more than a layer's arithmetic.

The system hands out memory page by page, zeroed: about 0.1 ms a MB, where a layer writes a MB of outputs in 0.05 ms.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref

import numpy as np

from accelsim.int8.network import Activation, Byte

PAGE = 1 << 12


class Buffers:
    """Hands out arrays of bytes; an array's memory comes back when the last view of it is gone. Thread-safe.

    At most ``idle_bytes`` are kept for later, the rest goes back to the system.
    """

    def __init__(self, idle_bytes: int) -> None:
        self.idle_bytes = idle_bytes
        self._idle: dict[int, list[mmap.mmap]] = {}
        self._held = 0
        self._lock = threading.RLock()  # a collection inside may run give() on the same thread

    def take(self, shape: tuple[int, ...], dtype: Byte) -> Activation:
        """An uninitialised C-contiguous array, int8 or uint8."""
        count = math.prod(shape)
        if count < PAGE:
            return np.empty(shape, dtype)
        size = -(-count // PAGE) * PAGE
        with self._lock:
            idle = self._idle.get(size)
            memory = idle.pop() if idle else None
            if memory is not None:
                self._held -= size
        if memory is None:
            memory = _map(size)
        # NumPy lets every view hold on to this array, not to the memory behind it.
        root: Activation = np.frombuffer(memory, dtype)
        weakref.finalize(root, self._give, memory, size).atexit = False
        return root[:count].reshape(shape)

    def _give(self, memory: mmap.mmap, size: int) -> None:
        with self._lock:
            if self._held + size <= self.idle_bytes:
                self._idle.setdefault(size, []).append(memory)
                self._held += size


def _map(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size)
    # Only advice: kernels without huge pages refuse it.
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
