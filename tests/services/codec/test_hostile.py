"""Bytes that no encoder writes, in what is not fuzzed beside its own tests."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from services.codec.core import inputs, model
from services.codec.core.bodies import CodecError


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e-3, 1.01])
def test_float_pixels_out_of_range_are_refused_without_a_warning(value: float) -> None:
    body = bytearray(inputs.floats(np.full((1, 2, 2, 1), 9, np.uint8)))
    body[5:9] = np.float32(value).tobytes()
    with pytest.raises(CodecError, match=r"outside 0\.\.1"):
        inputs.decode(bytes(body), 1, (2, 2, 1))


def test_a_signalling_nan_is_refused_without_a_warning() -> None:
    body = b"\x03" + b"\x01\x00\xa0\x7f" * 4
    with pytest.raises(CodecError, match=r"outside 0\.\.1"):
        inputs.decode(body, 1, (2, 2, 1))


def test_a_network_that_would_unpack_to_more_than_a_device_has_is_refused_before_it_is() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes((1 << 28) + 1))
    assert len(bomb) < 1 << 16
    with pytest.raises(CodecError, match=f"declares {(1 << 28) + 1} bytes, at most"):
        model.decode(None, bytes((model.WHOLE,)) + bomb)
