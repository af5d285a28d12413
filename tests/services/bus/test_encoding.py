"""Messages to bytes and back; every hostile byte ends in MessageError, within bounded memory."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.bus import encoding, messages, topics
from services.bus.encoding import MessageError
from services.bus.messages import Ack, Chunk, Flow, Manifest, Message, Ref, Tensor

TOPICS = [f"r2f/v1/d/{key}" for key in topics.TABLE] + ["r2f/v1/d/state/agent", "r2f/v1/d/event/forward"]


def value(kind: Any) -> Any:
    """Some value of an annotated field."""
    info = msgspec.inspect.type_info(kind)
    return sample(info)


def sample(info: msgspec.inspect.Type) -> Any:
    inspect = msgspec.inspect
    match info:
        case inspect.IntType():
            return 3
        case inspect.FloatType():
            return 0.5
        case inspect.BoolType():
            return True
        case inspect.StrType():
            return "x"
        case inspect.BytesType():
            return b"\x01\x02"
        case inspect.LiteralType():
            return info.values[0]
        case inspect.NoneType():
            return None
        case inspect.VarTupleType():
            return (sample(info.item_type),)
        case inspect.TupleType():
            return tuple(sample(item) for item in info.item_types)
        case inspect.DictType():
            return {sample(info.key_type): sample(info.value_type)}
        case inspect.UnionType():
            return sample(info.types[0])
        case inspect.StructType():
            if info.cls is Tensor:
                return encoding.inline(np.arange(6, dtype=np.int8).reshape(1, 2, 3, 1))
            return info.cls(**{field.name: sample(field.type) for field in info.fields if field.required})
    raise AssertionError(info)


def example(topic: str) -> Message:
    """A message of the type that travels there, all required fields filled."""
    return sample(msgspec.inspect.type_info(topics.message_type(topics.parse(topic))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("topic", TOPICS)
def test_every_message_comes_back_and_msgpack_reads_the_same(topic: str) -> None:
    message = example(topic)
    payload = encoding.encode(message)
    assert encoding.decode(topic, payload) == message
    read = msgpack.unpackb(payload)
    assert read["type"] == type(message).__name__.lower()
    assert encoding.decode(topic, msgpack.packb(read)) == message


@pytest.mark.parametrize("topic", TOPICS)
def test_another_type_on_a_topic_is_refused(topic: str) -> None:
    kind = topics.message_type(topics.parse(topic))
    for other in TOPICS:
        if topics.message_type(topics.parse(other)) is not kind:
            with pytest.raises(MessageError):
                encoding.decode(topic, encoding.encode(example(other)))


@pytest.mark.parametrize("topic", TOPICS)
def test_every_truncation_is_refused(topic: str) -> None:
    payload = encoding.encode(example(topic))
    for end in range(len(payload)):
        with pytest.raises(MessageError):
            encoding.decode(topic, payload[:end])
    with pytest.raises(MessageError):
        encoding.decode(topic, payload + b"\x00")


@given(st.sampled_from(TOPICS), st.binary(max_size=400))
def test_any_bytes_are_a_message_or_an_error(topic: str, payload: bytes) -> None:
    try:
        message = encoding.decode(topic, payload)
    except MessageError:
        return
    assert encoding.decode(topic, encoding.encode(message)) == message


@settings(max_examples=300)
@given(st.sampled_from(TOPICS), st.data())
def test_any_flipped_bit_is_a_message_or_an_error(topic: str, data: st.DataObject) -> None:
    payload = bytearray(encoding.encode(example(topic)))
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, 8 * len(payload) - 1))
        payload[bit // 8] ^= 1 << bit % 8
    try:
        encoding.decode(topic, bytes(payload))
    except MessageError:
        return


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 4 G items
        b"\xdf\xff\xff\xff\xff",  # a map of 4 G pairs
        b"\xc6\xff\xff\xff\xff",  # 4 GB of bytes
        b"\xdb\xff\xff\xff\xff",  # 4 GB of text
        b"\x91" * 100_000,  # nesting
        b"\x81\xa6layers" + b"\xdd\xff\xff\xff\xff",
        b"\x83\xa4type\xa6voted\xa6layers\xdd\xff\xff\xff\xff",
        b"\x83\xa4type\xa7forward\xa7samples\xdd\xff\xff\xff\xff\x01",
    ],
)
def test_a_length_is_not_believed(bomb: bytes) -> None:
    tracemalloc.start()
    for topic in TOPICS:
        with pytest.raises(MessageError):
            encoding.decode(topic, bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_limits_and_versions_are_kept() -> None:
    topic = "r2f/v1/d/up/ack"
    message = Ack(session="s", of="mode", seq=1, ok=True)
    with pytest.raises(MessageError, match="chunks"):
        encoding.decode(topic, bytes(encoding.PACKET_LIMIT + 1))
    with pytest.raises(MessageError, match="version 2"):
        encoding.decode(topic, encoding.encode(msgspec.structs.replace(message, v=2)))
    with pytest.raises(MessageError, match="no message is defined"):
        encoding.decode("r2f/v1/d/up/nothing", encoding.encode(message))
    with pytest.raises(MessageError, match="is not r2f/v1"):
        encoding.decode("r2f/v2/d/up/ack", encoding.encode(message))
    chunk = Chunk(session="s", digest=bytes(16), index=0, data=b"x")
    assert encoding.decode(topic, encoding.encode(chunk)) == chunk
    with pytest.raises(MessageError):
        encoding.decode(topic, encoding.encode(chunk), whole=True)


@pytest.mark.parametrize(
    ("shape", "data"),
    [((2, 3), bytes(5)), ((2, 3), bytes(7)), ((0,), b"x"), ((-1, -6), bytes(6)), ((2**40, 2**40), b""), ((1,) * 9, b"x")],
)
def test_a_tensor_that_does_not_hold_its_shape_is_refused(shape: tuple[int, ...], data: bytes) -> None:
    topic = "r2f/v1/d/up/outputs"
    payload = msgspec.to_builtins(example(topic), builtin_types=(bytes,))
    payload["outputs"] = {"dtype": "int8", "shape": shape, "data": data}
    with pytest.raises(MessageError):
        encoding.decode(topic, msgpack.packb(payload))


def test_a_tensor_has_either_bytes_or_a_reference() -> None:
    ref = Ref("r2f-a", 0, 1, 69632, 4)
    with pytest.raises(ValueError, match="either"):
        Tensor(dtype="int8", shape=(4,))
    with pytest.raises(ValueError, match="either"):
        Tensor(dtype="int8", shape=(4,), data=bytes(4), ref=ref)
    with pytest.raises(ValueError, match="cannot have 4 bytes"):
        Tensor(dtype="float32", shape=(4,), ref=ref)
    outputs = messages.Outputs(
        session="s", iteration=0, attempt=0, outputs=Tensor(dtype="int8", shape=(4, 1, 1, 1), ref=ref), labels=None
    )
    with pytest.raises(MessageError, match="inline"):
        encoding.decode("r2f/v1/d/up/outputs", encoding.encode(outputs))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "float32"])
def test_inline_tensors_come_back_read_only(dtype: str) -> None:
    array = np.arange(24).astype(dtype).reshape(2, 3, 4)[:, ::2]
    back = encoding.view(encoding.inline(array))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert not back.flags.writeable
    with pytest.raises(TypeError, match="cannot be float64"):
        encoding.inline(np.zeros(1))


def test_manifests_and_flows_are_bounded() -> None:
    for bad in (
        {"type": "manifest", "session": "", "length": -1, "chunk": 1, "digest": b""},
        {"type": "manifest", "session": "", "length": 1, "chunk": 1, "digest": bytes(17)},
        {"type": "chunk", "session": "", "index": -1, "digest": b"", "data": b""},
    ):
        with pytest.raises(MessageError):
            encoding.decode("r2f/v1/d/up/ack", msgpack.packb(bad))
    flow = Flow(session="", to="o", topic="t", taken=1, missing=((1, 2),) * 65)
    with pytest.raises(MessageError):
        encoding.decode("r2f/v1/d/up/flow", encoding.encode(flow))
    assert isinstance(Manifest(session="s", length=1, chunk=256, digest=bytes(16)), Message)


NUMBERS = [
    ("event/forward", "host_s", (math.nan, math.inf, -1.0, 1e300)),
    ("event/forward", "device_s", (math.nan, -math.inf)),
    ("event/forward", "bytes", (-1, 2**60)),
    ("event/iteration", "loss", (math.nan, math.inf)),
    ("event/iteration", "accuracy", (math.nan, -1.0, 1000.0)),
    ("event/iteration", "wall_s", (math.nan, -1.0)),
    ("event/progress", "value", (math.nan, math.inf, 1000.0, -1000.0)),
    ("event/progress", "step", (-1,)),
    ("up/layers", "sent_at", (math.nan, math.inf)),
    ("up/ack", "error", ("x" * 2001,)),
    ("state/agent", "samples", ({"train": -1}, {str(i): 1 for i in range(17)}, {"x" * 65: 1})),
    ("down/mode", "rates", ({"input": math.nan}, {"input": 1.5}, {"output": -0.1})),
]


@pytest.mark.parametrize(("topic", "field", "values"), NUMBERS)
def test_numbers_that_mean_nothing_are_refused(topic: str, field: str, values: tuple[Any, ...]) -> None:
    topic = f"r2f/v1/d/{topic}"
    good = msgspec.to_builtins(example(topic), builtin_types=(bytes,)) | {"phase": "after"}
    if good["type"] != "progress":
        del good["phase"]
    encoding.decode(topic, msgpack.packb(good))
    for value in values:
        with pytest.raises(MessageError, match=field if field != "rates" else "rates|rate"):
            encoding.decode(topic, msgpack.packb(good | {field: value}))


def test_psnr_has_no_end_and_ssim_has() -> None:
    progress = {"type": "progress", "session": "s", "phase": "after", "step": 1, "steps": 1}
    topic = "r2f/v1/d/event/progress"
    encoding.decode(topic, msgpack.packb(progress | {"value": 120.0, "metric": "psnr"}))
    with pytest.raises(MessageError, match="ssim of 1"):
        encoding.decode(topic, msgpack.packb(progress | {"value": 1.5, "metric": "ssim"}))
