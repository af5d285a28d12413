"""One layer's outputs as bytes on the link, and back (architecture.md, "The link").

The first byte names the coding (``core.codings``), so the decoder needs no configuration.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import xxhash

from accelsim.int8.network import Activation, Byte, Int8
from services.codec.core import codings
from services.codec.core.bodies import CodecError
from services.scheme import WAYS, Codec, Coding

_SPARSE_SHIFT: Final = 3


def digest(array: Activation) -> int:
    """xxh3-64 of the array's NHWC bytes: by it the receiver knows that it rebuilt just what the device computed."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(array).view(np.uint8).data)


def encode(actual: Activation, reference: Activation | None, codec: Codec) -> bytes:
    """A layer's actual outputs, int8 or uint8 (N, H, W, C), as a self-describing body, as ``services.scheme.WAYS`` says.

    ``reference`` is the prediction that the receiver will make too, of the same shape and dtype; None sends the outputs.
    Raises ValueError where a dtype or shape differs.
    """
    alike = reference is None or (reference.dtype == actual.dtype and reference.shape == actual.shape)
    if actual.dtype not in (np.int8, np.uint8) or not alike:
        got = "none" if reference is None else f"{reference.dtype} of shape {reference.shape}"
        raise ValueError(f"encode: actual is {actual.dtype} of {actual.shape}, reference {got}; both must be bytes and alike")
    way = WAYS[codec]
    # Increments are modulo 256, so that codings need not know which integers the bytes are.
    of = np.ascontiguousarray(actual).view(np.int8)
    if reference is None or not way.increments:
        return _smallest(way.outputs, of, of)
    against = np.ascontiguousarray(reference).view(np.int8)
    first, *others = way.increments
    body = codings.encode(first, of, against)
    # Where errors are this sparse no other was ever smaller, and looking would cost more than coding.
    if others and (body is None or len(body) - 1 > of.size >> _SPARSE_SHIFT):
        body = _smallest(others, of, against, body)
    if body is None:
        raise ValueError(f"encode: codec {codec} has no coding for such dense increments; give it another beside {first!r}")
    # Increments that compress worse than 4:1 are hardly sparse: only then can the outputs themselves be smaller.
    if way.mixed and 4 * len(body) >= of.size:
        return min(body, _smallest(way.outputs, of, of), key=len)
    return body


def _smallest(names: tuple[Coding, ...] | list[Coding], actual: Int8, reference: Int8, also: bytes | None = None) -> bytes:
    """The smallest body; of equal ones the first, and ``also`` is the last."""
    found = [codings.encode(name, actual, reference) for name in names] + [also]
    return min((body for body in found if body is not None), key=len)


def decode(body: bytes, prediction: Activation | None, shape: tuple[int, ...], dtype: Byte) -> Activation:
    """The outputs, of ``shape`` and ``dtype``, that ``encode`` was given, as far as ``prediction`` equals its reference.

    Memory is bounded by ``shape``, whatever the body says. Raises CodecError on anything that no encoder writes.
    """
    row = codings.row_of(body)
    if not row.predicted:
        of = np.broadcast_to(np.int8(0), shape)  # a shape that takes no memory
    elif prediction is None:
        raise CodecError(f"layer body: coding {row.tag} needs a prediction to add to, and there is none")
    elif prediction.dtype != dtype or prediction.shape != shape:
        raise ValueError(f"decode: prediction is {prediction.dtype} of {prediction.shape}, expected {dtype} of {shape}")
    else:
        of = prediction.view(np.int8)
    return row.decode(memoryview(body)[1:], of).view(dtype)


def needs_prediction(body: bytes) -> bool:
    """Whether ``decode`` of this body adds to a prediction. Raises CodecError for a body of no known coding."""
    return codings.row_of(body).predicted
