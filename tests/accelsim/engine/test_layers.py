"""Windows of an image as one strided copy, against the reference, which looks up each place."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accelsim.engine import reference
from accelsim.engine.layers import cut
from accelsim.int8.network import INPUT, Slice

sides = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 5))


@given(sides, sides, st.tuples(*[st.integers(-9, 9)] * 3), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.booleans())
def test_a_window_is_the_references(
    size: tuple[int, int, int], shape: tuple[int, int, int], offset: tuple[int, int, int], step: tuple[int, int], signed: bool
) -> None:
    layer = Slice(name="window", inputs=(INPUT,), shape=shape, scale=1.0, signed=signed, offset=offset, step=step)
    kind = np.int8 if signed else np.uint8
    limits = np.iinfo(kind)
    x = np.random.default_rng(0).integers(limits.min, limits.max + 1, (2, *size)).astype(kind)
    y = np.full((2, *shape), 77, kind)
    cut(layer, x, y)
    assert np.array_equal(y, reference.layer(layer, [x]))
