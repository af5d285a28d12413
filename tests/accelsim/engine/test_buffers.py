"""Memory of outputs that is used again."""

from __future__ import annotations

import numpy as np

from accelsim.engine.buffers import Buffers

BYTES = np.dtype(np.int8)


def test_buffers_come_back_when_the_last_view_is_gone() -> None:
    pool = Buffers(idle_bytes=1 << 20)
    first = pool.take((3, 50, 50), BYTES)
    place = first.__array_interface__["data"][0]
    part = first[1:].reshape(-1)[5:]
    del first
    assert pool.take((3, 50, 50), BYTES).__array_interface__["data"][0] != place
    part[:] = 1
    del part
    places = [pool.take((3, 50, 50), BYTES) for _ in range(2)]
    assert place in [a.__array_interface__["data"][0] for a in places]
    large = pool.take((1 << 21,), BYTES)
    del large
    assert not any(size > 1 << 20 for size, idle in pool._idle.items() if idle)
