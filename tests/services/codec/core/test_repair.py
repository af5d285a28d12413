"""Corrections make the server's tensor the device's, from whatever the votes got wrong."""

from __future__ import annotations

import numpy as np
import pytest

from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Conv, Int8, Network, multiplier
from services.codec.core import layers, repair
from services.codec.core.bodies import CodecError

SHAPE = (2, 6, 5, 8)
BYTES = np.dtype(np.int8)


@pytest.fixture(scope="module")
def engine() -> Engine:
    generator = np.random.default_rng(0)
    weight_scale = generator.uniform(0.001, 0.004, 8).astype(np.float32)
    conv = Conv(
        name="conv",
        inputs=(INPUT,),
        shape=(6, 5, 8),
        scale=0.5,
        weight=generator.integers(-128, 128, (8, 3, 3, 3), dtype=np.int8),
        bias=generator.integers(-500, 500, 8, dtype=np.int32),
        weight_scale=weight_scale,
        multiplier=multiplier(0.25, weight_scale, 0.5),
        padding=(1, 1),
    )
    table = np.tile(np.arange(-128, 128, dtype=np.int8), (3, 1))
    return Engine(Network(name="one", input_shape=(6, 5, 3), input_scale=0.25, input_table=table, layers=(conv,)))


def tensors(engine: Engine, wrong: float, hit: float) -> tuple[Int8, Int8, Int8]:
    """Input, actual output with ``hit`` of its elements in error, and a vote that is wrong in ``wrong`` of its elements."""
    generator = np.random.default_rng(1)
    x = generator.integers(-128, 128, (2, 6, 5, 3), dtype=np.int8)
    right = engine.fault_free(0, [x])
    actual = np.where(generator.random(SHAPE) < hit, right + np.int8(3), right)
    return x, actual, np.where(generator.random(SHAPE) < wrong, right - np.int8(1), right)


@pytest.mark.parametrize("wrong", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("hit", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("whole", [False, True])
def test_a_correction_makes_the_layer_exact(engine: Engine, wrong: float, hit: float, whole: bool) -> None:
    x, actual, vote = tensors(engine, wrong, hit)
    rebuilt = layers.decode(layers.encode(actual, vote, "chained"), engine.fault_free(0, [x]), SHAPE, BYTES)
    digests = None if whole else repair.channel_digests(rebuilt).astype("<u4").tobytes()
    body = repair.correction(engine, 0, x, actual, vote, digests)
    assert layers.digest(repair.apply(body, rebuilt)) == layers.digest(actual)


def test_a_correction_is_small(engine: Engine) -> None:
    x, actual, vote = tensors(engine, 0.0, 0.02)
    vote[1, 2, 3, 4] += 1
    rebuilt = layers.decode(layers.encode(actual, vote, "chained"), engine.fault_free(0, [x]), SHAPE, BYTES)
    assert np.count_nonzero(rebuilt != actual) == 1
    digests = repair.channel_digests(rebuilt).astype("<u4").tobytes()
    body = repair.correction(engine, 0, x, actual, vote, digests)
    assert len(body) < 8
    assert np.array_equal(repair.apply(body, rebuilt), actual)


def test_channel_digests_tell_which_channel() -> None:
    array = np.random.default_rng(0).integers(-128, 128, SHAPE, dtype=np.int8)
    other = array.copy()
    other[0, 1, 2, 3] += 1
    assert np.flatnonzero(repair.channel_digests(array) != repair.channel_digests(other)).tolist() == [3]


def test_digests_of_another_layer_are_refused(engine: Engine) -> None:
    x, actual, vote = tensors(engine, 0.01, 0.02)
    with pytest.raises(CodecError, match="7 bytes"):
        repair.correction(engine, 0, x, actual, vote, b"1234567")
