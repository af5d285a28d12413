"""zstd frames are unpacked to the size that is expected, or not at all."""

from __future__ import annotations

import pytest
import zstandard

from services.codec.core import bodies, codings
from services.codec.core.bodies import CodecError


def test_there_and_back() -> None:
    data = bytes(range(256)) * 9
    assert bodies.decompress(memoryview(bodies.compress(data, 3)), len(data), "body") == data
    assert bodies.declared(memoryview(bodies.compress(data, 3)), "body") == len(data)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "model: "),
        (b"no frame at all", "model: "),
        (bodies.compress(bytes(100), 3) + b"x", "model: "),
        (bodies.compress(bytes(100), 3)[:-3], "model: "),
        (bodies.compress(bytes(101), 3), "model: a zstd frame declares 101 bytes, expected 100"),
        (bodies.compress(bytes(1 << 26), 3), "model: a zstd frame declares 67108864 bytes, expected 100"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100)), "model: a zstd frame that does not declare"),
    ],
)
def test_other_frames_are_refused_by_name(payload: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=f"^{message}"):
        bodies.decompress(memoryview(payload), 100, "model")


@pytest.mark.parametrize(
    ("body", "message"), [(b"", "empty"), (b"\x05", "unknown coding 5"), (b"\xff123", "unknown coding 255")]
)
def test_a_body_of_no_coding_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        codings.row_of(body)


def test_the_tags_are_those_of_the_page() -> None:
    """docs/wire.md, "A layer": these bytes are on the wire, so a row may be added and none may change."""
    tags = {name: row.tag for name, row in codings.TABLE.items()}
    expected = {"raw": 0, "zstd": 1, "increments, LZ4": 2, "increments, zstd": 3, "increments, entropy": 4}
    assert tags.items() >= expected.items()
