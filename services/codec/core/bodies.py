"""What all bodies on the link have in common: the error for bytes that no encoder writes, and zstd that cannot explode."""

from __future__ import annotations

import zstandard


class CodecError(ValueError):
    """Bytes that are not what an encoder writes; nothing of them was used."""


def compress(data: bytes | memoryview, level: int) -> bytes:
    """One zstd frame that states its size."""
    return zstandard.ZstdCompressor(level=level).compress(data)


def declared(payload: memoryview, what: str) -> int:
    """Bytes that a zstd frame says it holds, which is what the library would allocate; nothing is unpacked.

    Raises CodecError, beginning with ``what``, for bytes that are no frame or do not say it.
    """
    try:
        size = zstandard.get_frame_parameters(payload).content_size
    except zstandard.ZstdError as error:
        raise CodecError(f"{what}: {error}") from error
    if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
        raise CodecError(f"{what}: a zstd frame that does not declare its size")
    return int(size)


def decompress(payload: memoryview, size: int, what: str) -> bytes:
    """The ``size`` bytes in one zstd frame. Raises CodecError, beginning with ``what``, where there are not just as many."""
    if (says := declared(payload, what)) != size:
        raise CodecError(f"{what}: a zstd frame declares {says} bytes, expected {size}")
    try:
        data = zstandard.ZstdDecompressor().decompress(payload, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"{what}: {error}") from error
    if len(data) != size:
        raise CodecError(f"{what}: {len(data)} bytes from zstd, expected {size}")
    return data
