"""A chip's engine against the array simulated element by element: whole layers, single elements, whole networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim import zoo
from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.faults import Flips, Rates, chip, permanent
from accelsim.faults.permanent import Fault, fault_map
from accelsim.faults.worn import Worn, exact
from accelsim.int8.network import INPUT, Conv, Network
from accelsim.int8.walk import walk
from accelsim.lowering import lower
from accelsim.timing import Array


def one_layer(rng: np.random.Generator, groups: int, depth: int, filters: int, kernel: int, stride: int) -> Network:
    out = filters * groups
    side = [(extent + 2 - (kernel - 1) - 1) // stride + 1 for extent in (5, 4)]
    conv = Conv(
        name="conv",
        inputs=(INPUT,),
        shape=(side[0], side[1], out),
        scale=1.0,
        weight=rng.integers(-128, 128, (out, depth, kernel, kernel), np.int8),
        bias=rng.integers(-5000, 5000, out, np.int32),
        weight_scale=np.ones(out, np.float32),
        multiplier=rng.uniform(1e-4, 1e-2, out).astype(np.float32),
        stride=(stride, stride),
        padding=(1, 1),
        groups=groups,
    )
    table = np.zeros((groups * depth, 256), np.int8)
    return Network(name="one", input_shape=(5, 4, groups * depth), input_scale=1.0, input_table=table, layers=(conv,))


@pytest.fixture(scope="module")
def small() -> Network:
    """Residual sums and strides."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    return lower(zoo.build("resnet20", 10).eval(), images, (0.5,) * 3, (0.25,) * 3, name="resnet20")


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2]), st.integers(1, 2)),
    st.integers(1, 5),
    st.integers(1, 4),
    st.floats(0, 0.6),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_elements_are_those_of_the_layer(shape: tuple[int, ...], rows: int, columns: int, rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = one_layer(rng, *shape)
    faults = chip.random_map(Array(rows=rows, columns=columns), rate, seed, ["weight", "accumulator", "accumulator", "bypass"])
    engine = Worn(network, faults, "portable")
    x = rng.integers(-128, 128, (2, *network.input_shape), np.int8)
    # The layer itself is held against the array, element by element, in test_permanent.
    whole = engine.fault_free(0, [x])
    held = Engine(permanent.faulty_network(network, faults), "portable")
    np.testing.assert_array_equal(whole, permanent.replicas(held, faults, 0, x, [Flips()])[0])
    positions = rng.integers(0, whole.size, 40)
    np.testing.assert_array_equal(engine.elements(0, x, positions), whole.reshape(-1)[positions])
    np.testing.assert_array_equal(engine.elements(0, x, np.zeros(0, np.int64)), whole.reshape(-1)[:0])


def test_a_network_goes_through_layer_by_layer(small: Network) -> None:
    faults = chip.random_map(Array(rows=8, columns=4), 0.3, 5)
    x = np.random.default_rng(1).integers(-128, 128, (3, *small.input_shape), np.int8)
    engine, sound = Worn(small, faults), Engine(small)
    outputs = engine.run(x)
    values = {INPUT: x}
    for index, layer, operands in walk(small, values, keep=True):
        runs = engine if isinstance(layer, Conv) else sound
        values[index] = runs.fault_free(index, operands)
        np.testing.assert_array_equal(outputs[index], values[index])
    assert any(not np.array_equal(y, z) for y, z in zip(outputs, sound.run(x), strict=True))


def test_every_way_of_running_has_the_same_faults(small: Network) -> None:
    """One pass, replicas, and replicas through a network, with soft errors on top."""
    device = Simulated(Rates.uniform(1e-3), 3, permanent=chip.random_map(Array(rows=8, columns=4), 0.3, 5))
    device.load(small)
    x = np.random.default_rng(1).integers(-128, 128, (3, *small.input_shape), np.int8)
    outputs = device.run(x, iteration=2)
    found: dict[int, list[np.ndarray]] = {}
    chained = device.run_chained(x, lambda index, replicas, first: found.update({index: list(replicas)}), iteration=2)
    for one, other in zip(outputs, chained, strict=True):
        np.testing.assert_array_equal(one, other)
    for index, layer in small.convs():
        source = layer.inputs[0]
        operand = x if source == INPUT else outputs[source]
        again = device.run_replicas(index, operand, iteration=2)
        for one, other in zip(found[index], again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_same_chip_shares_an_engine(small: Network) -> None:
    faults = [fault_map(Array(), [Fault(0, 0, "bypass")], name) for name in ("a", "b")]
    one, other = (exact(small, "auto", of) for of in faults)
    assert one is other
    assert isinstance(one, Worn)
    assert not isinstance(exact(small), Worn)


def test_a_wrong_input_is_refused(small: Network) -> None:
    engine = Worn(small, fault_map(Array(), []))
    with pytest.raises(ValueError, match="network input"):
        engine.run(np.zeros((1, 2, 3, 4), np.int8))
    with pytest.raises(ValueError, match="layer"):
        engine.replicas(0, np.zeros((1, 2, 3, 4), np.int8), [Flips()])
