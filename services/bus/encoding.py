"""Messages to bytes and back: msgpack through msgspec, validated against the topic (architecture.md, "The bus")."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.bus import topics
from services.bus.messages import VERSION, Chunk, Count, Manifest, Message, Name, Sealed, Tensor

PACKET_LIMIT = 1 << 20
"""Bytes that one packet may carry. The Bus cuts at 127 KiB; a foreign sender may send larger ones, up to here."""

_ENCODER = msgspec.msgpack.Encoder()


class MessageError(ValueError):
    """A message that cannot be taken: its bytes, its type on that topic, or what it refers to."""


def encode(message: Message) -> bytes:
    """The msgpack bytes of a message."""
    return _ENCODER.encode(message)


@lru_cache(maxsize=1024)
def _decoder(topic: str, whole: bool, inside: bool) -> tuple[msgspec.msgpack.Decoder[Any], bool]:
    try:
        parsed = topics.parse(topic)
        kind = topics.message_type(parsed)
    except ValueError as error:
        raise MessageError(str(error)) from None
    wanted: Any = kind
    if not inside and is_sealed_topic(topic):
        wanted |= Sealed
    if not (whole or inside):
        wanted |= Manifest | Chunk
    return msgspec.msgpack.Decoder(wanted), parsed.plane in topics.LINK_PLANES


@lru_cache(maxsize=1024)
def is_sealed_topic(topic: str) -> bool:
    """Whether messages of that topic go in envelopes where there are keys: all that services act on, but no Flow."""
    return topics.parse(topic).key in topics.SENDERS


def decode(topic: str, payload: bytes, *, whole: bool = False, inside: bool = False) -> Message:
    """A packet's message: of the type that the topic carries, or Sealed, or a Manifest or Chunk of one unless ``whole``.
    ``inside``: what was in an envelope, which is neither.

    Raises MessageError for anything else: too large, truncated, of another version or type, a field out of its bounds,
    a tensor whose bytes do not fit its shape, or a shared-memory reference on a topic that leaves the host.
    """
    if not (whole or inside) and len(payload) > PACKET_LIMIT:
        raise MessageError(f"{topic}: a packet of {len(payload)} bytes is over {PACKET_LIMIT}; send it in chunks")
    decoder, leaves = _decoder(topic, whole, inside)
    try:
        message: Message = decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"{topic}: {error}") from None
    if message.v != VERSION:
        raise MessageError(f"{topic}: version {message.v} of the contract; this is version {VERSION}")
    if leaves:
        check_inline(topic, message)
    return message


class _Stamp(msgspec.Struct):
    origin: Name = ""
    n: Count = 0


_STAMP = msgspec.msgpack.Decoder(_Stamp)


def stamp(payload: bytes) -> tuple[str, int] | None:
    """``origin`` and ``n`` of a packet that ``decode`` refused, where those at least can be read."""
    try:
        read = _STAMP.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return (read.origin, read.n) if read.origin and read.n else None


def check_inline(topic: str, message: Message) -> None:
    """Raises MessageError where a message that leaves the host holds a tensor by reference."""
    for field in message.__struct_fields__:
        value = getattr(message, field)
        if isinstance(value, Tensor) and value.ref is not None:
            raise MessageError(f"{topic}: {field} is in shared memory, which another host cannot read; send it inline")


def inline(array: NDArray[Any]) -> Tensor:
    """A tensor that carries its bytes itself. Raises TypeError for a dtype that the contract does not name."""
    name = array.dtype.name
    if name not in ("int8", "uint8", "int32", "int64", "float32"):
        raise TypeError(f"a tensor cannot be {name}; use int8, uint8, int32, int64 or float32")
    return Tensor(dtype=name, shape=array.shape, data=np.ascontiguousarray(array).tobytes())  # type: ignore[arg-type]


def view(tensor: Tensor) -> NDArray[Any]:
    """The read-only array of an inline tensor, without a copy. Raises MessageError for one in shared memory."""
    if tensor.data is None:
        raise MessageError("this tensor is in shared memory; open it with Bus.open")
    return np.frombuffer(tensor.data, dtype=tensor.dtype).reshape(tensor.shape)
