"""Exact mode: how a layer that the server rebuilt wrong is asked for and mended (architecture.md, "The link").

Increments are right as far as the device's vote is the fault-free output. Where a digest says that one was not, the server
names the first such layer and what it made of its channels; the device's reliable processor computes the fault-free outputs
of the channels that differ, and answers with ``vote - fault-free``, which is nearly all zeros. The server adds that and goes on
from there. Should a later layer be wrong too, the second request is for everything from that layer on, which cannot fail:
the device computes all of it. So two round trips are enough at any bit error rate.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from accelsim.engine import Engine
from accelsim.int8.network import Activation
from services.codec.core import codings, layers
from services.codec.core.bodies import CodecError

UInt32 = npt.NDArray[np.uint32]


def channel_digests(array: Activation) -> UInt32:
    """Low half of the xxh3-64 of each channel's bytes, uint32 (C,), of an activation (N, H, W, C)."""
    channels = np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T).view(np.uint8)
    return np.array([xxhash.xxh3_64_intdigest(channel.data) & 0xFFFFFFFF for channel in channels], np.uint32)


def correction(engine: Engine, index: int, x: Activation, actual: Activation, vote: Activation, digests: bytes | None) -> bytes:
    """The body that makes the server's layer ``index`` exact, from the device's side.

    ``x`` is the layer's actual input, ``actual`` its output and ``vote`` what its increments were against: a layer that
    was sent as it is needs no correction. ``digests`` are the server's ``channel_digests`` as little-endian bytes, or None to
    check every channel. Raises CodecError if they are not as many as the layer's channels.
    """
    if digests is None:
        right = engine.fault_free(index, [x])
    else:
        if len(digests) != 4 * actual.shape[-1]:
            raise CodecError(f"repair: {len(digests)} bytes of digests for {actual.shape[-1]} channels of layer {index}")
        differ = np.flatnonzero(channel_digests(actual) != np.frombuffer(digests, "<u4"))
        rows = np.arange(actual.size // actual.shape[-1], dtype=np.int64)[:, None] * actual.shape[-1]
        positions = (rows + differ).reshape(-1)
        right = vote.copy()
        right.reshape(-1)[positions] = engine.elements(index, x, positions)
    return codings.encode("increments, entropy", vote.view(np.int8), right.view(np.int8)) or layers.encode(
        actual, None, "chained"
    )


def apply(body: bytes, rebuilt: Activation) -> Activation:
    """The server's layer after a correction: in an array of its own. Raises CodecError as ``layers.decode`` does."""
    return layers.decode(body, rebuilt, rebuilt.shape, rebuilt.dtype)
