"""Every path of the engine against the naive oracle, bit for bit."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelsim.engine import Engine, executions, probe, reference, vnni
from accelsim.engine.packing import pack
from accelsim.faults import Flips, Key, Rates, draw
from accelsim.int8.network import (
    INPUT,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Layer,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Resample,
    Slice,
    Table,
)
from tests.quick import few_rounds

PATHS = [name for name, works, _ in probe() if works]


def network(*layers: Layer, shape: tuple[int, int, int]) -> Network:
    table = np.zeros((shape[2], 256), np.int8)
    return Network(name="test", input_shape=shape, input_scale=1.0, input_table=table, layers=layers)


def conv(
    random: np.random.Generator, shape: tuple[int, int, int], out: int, kernel: tuple[int, int] = (1, 1), extreme: bool = False,
    **geometry: object,
) -> Conv:  # fmt: skip
    """A random layer; ``extreme``: all weights are -128 or 127."""
    fields: dict[str, tuple[int, int]] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)} | geometry  # type: ignore[assignment]
    groups = fields.get("groups", 1)
    sides = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(shape[:2], kernel, fields["stride"], fields["padding"], fields["dilation"], strict=True)
    ]
    weight = random.integers(-128, 128, (out, shape[2] // groups, *kernel), np.int8)
    if extreme:
        weight = np.where(weight < 0, np.int8(-128), np.int8(127))
    largest = 128 * np.sqrt(weight[0].size)
    return Conv(
        name="layer", inputs=(INPUT,), shape=(sides[0], sides[1], out), scale=1.0, weight=weight,
        bias=random.integers(-5000, 5000, out, np.int32), weight_scale=np.ones(out, np.float32),
        multiplier=(random.random(out) * 4 / largest).astype(np.float32), **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def images(
    random: np.random.Generator, count: int, shape: tuple[int, int, int], extreme: bool = False, dtype: type = np.int8
) -> np.ndarray:
    x = random.integers(-128, 128, (count, *shape), np.int8)
    x = np.where(x < 0, np.int8(-128), np.int8(127)) if extreme else x
    return x if dtype is np.int8 else np.where(x < 0, 0, 255).astype(dtype) if extreme else x.view(dtype)


def behind(layer: Conv, x: np.ndarray) -> tuple[Network, int]:
    """A network in which ``layer`` reads operands of x's dtype, and the layer's index there."""
    shape = x.shape[1:]
    if x.dtype == np.int8:
        return network(layer, shape=shape), 0
    first = Table(
        name="first", inputs=(INPUT,), shape=shape, scale=1.0, signed=False, table=np.arange(256, dtype=np.uint8),
        slope=np.ones(256, np.float32),
    )  # fmt: skip
    return network(first, replace(layer, inputs=(0,)), shape=shape), 1


def flips(layer: Conv, x: np.ndarray, rates: Rates, count: int, seed: int = 0) -> list[Flips]:
    outputs = len(x) * int(np.prod(layer.shape))
    return [
        draw(rates, Key(seed, "t", 0, 0, r), inputs=x.size, weights=layer.weight.size, outputs=outputs) for r in range(count)
    ]


@st.composite
def layers(draws: st.DrawFn) -> tuple[Conv, np.ndarray, int]:
    """A MAC layer, its input and a seed."""
    seed = draws(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    kind = draws(st.sampled_from(["dense", "pointwise", "grouped", "depthwise", "linear"]))
    small = st.integers(1, 3)
    kernel = (1, 1) if kind in ("pointwise", "linear") else draws(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draws(st.tuples(small, small)) if kernel != (1, 1) else (1, 1)
    padding = draws(st.tuples(st.integers(0, 3), st.integers(0, 3))) if kind != "linear" else (0, 0)
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    h, w = (1, 1) if kind == "linear" else (draws(st.integers(max(1, r), max(1, r) + 12)) for r in reach)
    groups, channels, out = 1, draws(st.integers(1, 40)), draws(st.integers(1, 140))
    if kind == "depthwise":
        groups = out = channels
    if kind == "grouped":
        groups = draws(st.integers(2, 4))
        channels, out = groups * draws(st.integers(1, 9)), groups * draws(st.integers(1, 20))
    extreme, signed = draws(st.booleans()), draws(st.booleans())
    low, high = (draws(st.integers(-128, 0)), 127) if signed else (draws(st.integers(0, 20)), 255)
    layer = conv(
        random, (h, w, channels), out, kernel, extreme, stride=draws(st.tuples(small, small)), padding=padding,
        dilation=dilation, groups=groups, signed=signed, low=low,
        high=random.integers(draws(st.integers(20, high)), high, out, np.int32, endpoint=True),
    )  # fmt: skip
    dtype = draws(st.sampled_from([np.int8, np.uint8]))
    return layer, images(random, draws(st.integers(1, 3)), (h, w, channels), extreme, dtype), seed


@pytest.mark.parametrize("path", PATHS)
@given(case=layers(), rate=st.sampled_from([0.0, 1e-3, 1e-2, 0.2]), accumulators=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_replicas_equal_the_naive_way(path: str, case: tuple[Conv, np.ndarray, int], rate: float, accumulators: bool) -> None:
    layer, x, seed = case
    struck = flips(layer, x, Rates(rate, rate, rate if accumulators else 0.0, rate), 3, seed)
    expected = [reference.replica(layer, x, f) for f in struck]
    net, index = behind(layer, x)
    run = Engine(net, path)
    for actual in (run.replicas(index, x, struck), [run.replicas(index, x, [f])[0] for f in struck]):
        assert all(np.array_equal(a, e) and a.dtype == e.dtype for a, e in zip(actual, expected, strict=True))
    fault_free = reference.layer(layer, [x])
    assert fault_free.dtype == layer.dtype
    assert np.array_equal(run.fault_free(index, [x]), fault_free)
    # The table turns int8 -128.. into uint8 0..
    quantised = x if index == 0 else (x ^ np.uint8(128)).view(np.int8)
    assert np.array_equal(run.run(quantised)[index], fault_free)
    positions = np.arange(0, fault_free.size, 3)
    assert np.array_equal(run.elements(index, x, positions), fault_free.reshape(-1)[positions])


@pytest.mark.skipif("vnni" not in PATHS, reason=f"the vnni path cannot run here: {vnni.missing()}")
@given(case=layers(), rate=st.sampled_from([1e-3, 1e-2, 0.1]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sparse_corrections_equal_the_naive_way(case: tuple[Conv, np.ndarray, int], rate: float) -> None:
    """Even where dense recomputation would have been chosen, so that flips that meet are met."""
    layer, x, seed = case
    struck = flips(layer, x, Rates(rate, rate, rate, rate), 3, seed)
    mac = pack(layer, x.shape[1:], x.dtype)
    actual = [np.empty((len(x), *layer.shape), layer.dtype) for _ in struck]
    executions.call(mac, layer, x, struck, actual)(0, len(x) * layer.shape[0] * layer.shape[1])
    assert all(np.array_equal(a, reference.replica(layer, x, f)) for a, f in zip(actual, struck, strict=True))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("groups", [1, 32])
def test_flips_that_meet(path: str, groups: int) -> None:
    """All bits of one input byte, of the weight it meets, and the outputs they reach."""
    random = np.random.default_rng(5)
    layer = conv(random, (6, 6, 32), 32, (3, 3), extreme=True, padding=(1, 1), groups=groups)
    x = images(random, 2, (6, 6, 32), extreme=True)
    byte = np.arange(8)
    meeting = Flips(
        input=(((0 * 6 + 2) * 6 + 2) * 32 + 1) * 8 + byte,
        weight=(1 * layer.weight[0].size + (9 if groups == 1 else 0) + 4) * 8 + byte,
        accumulator=(((0 * 6 + 2) * 6 + 2) * 32 + 1) * 32 + np.arange(32),
        output=(((0 * 6 + 2) * 6 + 2) * 32 + 1) * 8 + byte,
    )
    cases = [meeting, Flips(input=meeting.input, weight=meeting.weight), Flips(weight=meeting.weight[-1:])]
    run = Engine(network(layer, shape=(6, 6, 32)), path)
    expected = [reference.replica(layer, x, f) for f in cases]
    assert all(np.array_equal(a, e) for a, e in zip(run.replicas(0, x, cases), expected, strict=True))
    assert not np.array_equal(expected[1], reference.layer(layer, [x]))


@pytest.mark.parametrize("path", PATHS)
def test_accumulators_beyond_what_float32_holds(path: str) -> None:
    random = np.random.default_rng(1)
    layer = conv(random, (2, 2, 4000), 20)
    layer = replace(layer, weight=layer.weight & np.int8(63) | np.int8(64), multiplier=np.full(20, 1e-6, np.float32))
    x = np.full((1, 2, 2, 4000), 127, np.int8)
    x[0, 0, 0, :3] = 1, 2, 3
    assert np.abs(reference.accumulators(layer, x)).max() > 2**24
    struck = flips(layer, x, Rates.uniform(1e-3), 3)
    run = Engine(network(layer, shape=(2, 2, 4000)), path)
    expected = [reference.replica(layer, x, f) for f in struck]
    assert all(np.array_equal(a, e) for a, e in zip(run.replicas(0, x, struck), expected, strict=True))
    assert np.array_equal(run.fault_free(0, [x]), reference.layer(layer, [x]))


@pytest.mark.parametrize("path", PATHS)
def test_large_multipliers_saturate(path: str) -> None:
    layer = replace(conv(np.random.default_rng(1), (3, 3, 8), 70), multiplier=np.full(70, 1e9, np.float32))
    x = images(np.random.default_rng(2), 1, (3, 3, 8))
    assert np.array_equal(Engine(network(layer, shape=(3, 3, 8)), path).fault_free(0, [x]), reference.layer(layer, [x]))


def every_layer_type() -> Network:
    random = np.random.default_rng(3)
    first = conv(random, (9, 8, 6), 6, (3, 3), padding=(1, 1))
    table = random.integers(-128, 128, 256, np.int8)
    order = np.array([5, 0, 3, 1], np.int32)
    shape = (9, 8, 6)
    return network(
        first,
        Add(name="add", inputs=(0, INPUT), shape=shape, scale=1.0, multipliers=(0.7, 1.3), low=-90, high=100),
        Add(name="add3", inputs=(0, INPUT, 1), shape=shape, scale=1.0, multipliers=(0.7, 0.25, 0.5), low=0),
        Concat(name="cat", inputs=(1, 2, 0), shape=(9, 8, 18), scale=1.0, multipliers=(1.0, 0.6, 1.7), high=99),
        MaxPool(name="max", inputs=(3,), shape=(5, 4, 18), scale=1.0, kernel=(3, 2), stride=(2, 2), padding=(1, 0)),
        MeanPool(
            name="mean", inputs=(3,), shape=(4, 5, 18), scale=1.0, kernel=(3, 2), stride=(2, 2), padding=(0, 1),
            multiplier=0.19, low=-60,
        ),
        Table(name="table", inputs=(4,), shape=(5, 4, 18), scale=1.0, table=table, slope=np.zeros(256, np.float32)),
        Channels(name="channels", inputs=(1,), shape=(9, 8, 4), scale=1.0, order=order),
        MeanPool(name="global", inputs=(6,), shape=(1, 1, 18), scale=1.0, kernel=(5, 4), stride=(5, 4), multiplier=0.05),
        Mul(name="gate", inputs=(6, 8), shape=(5, 4, 18), scale=1.0, multiplier=0.011, low=-100),
        Mul(name="square", inputs=(6, 6), shape=(5, 4, 18), scale=1.0, multiplier=0.004),
        Slice(name="slice", inputs=(1,), shape=(5, 4, 12), scale=1.0, offset=(0, 1, -3), step=(2, 2)),
        Flatten(name="flat", inputs=(11,), shape=(1, 1, 240), scale=1.0),
        *resampled(0, 12, scale=1.0),
        Table(name="tables", inputs=(4,), shape=(5, 4, 18), scale=1.0, table=random.integers(-128, 128, (18, 256), np.int8),
              slope=np.zeros((18, 256), np.float32)),
        shape=shape,
    )  # fmt: skip


def resampled(source: int, index: int, **rest: Any) -> list[Resample]:
    """Any rows and columns of layer ``source``, (9, 8, 6), then means of them; the first is layer ``index + 1``."""
    random = np.random.default_rng(5)
    rows, columns = random.integers(0, 9, (4, 1)).astype(np.int32), random.integers(0, 8, (11, 1)).astype(np.int32)
    ones = [np.ones_like(side) for side in (rows, columns)]
    places = [random.integers(0, n, (m, 3)).astype(np.int32) for n, m in ((4, 7), (11, 5))]
    weights = [random.multinomial(12, (0.5, 0.3, 0.2), len(side)).astype(np.int32) for side in places]
    return [
        Resample(
            name="pick",
            inputs=(source,),
            shape=(4, 11, 6),
            rows=rows,
            row_weights=ones[0],
            columns=columns,
            column_weights=ones[1],
            multiplier=1.0,
            **rest,
        ),
        Resample(
            name="blend",
            inputs=(index + 1,),
            shape=(7, 5, 6),
            rows=places[0],
            row_weights=weights[0],
            columns=places[1],
            column_weights=weights[1],
            multiplier=float(np.float32(1 / 144)),
            **rest,
        ),
    ]


def every_layer_type_unsigned() -> Network:
    """The same on uint8 activations, and on operands of which one is int8."""
    random = np.random.default_rng(4)
    first = conv(random, (9, 8, 6), 6, (3, 3), padding=(1, 1), signed=False, low=0, high=np.array([255, 9, 99, 200, 255, 1]))
    plain = Slice(name="plain", inputs=(INPUT,), shape=(9, 8, 6), scale=1.0, offset=(0, 0, 0))
    table = random.integers(0, 256, 256, np.uint8)
    order = np.array([5, 0, 3, 1], np.int32)
    shape = (9, 8, 6)
    here = {"scale": 1.0, "signed": False, "low": 0, "high": 255}
    moved = {"scale": 1.0, "signed": False}
    none = np.zeros(256, np.float32)
    return network(
        first,
        plain,
        Add(name="add", inputs=(0, INPUT), shape=shape, multipliers=(0.7, 1.3), **here),
        Add(name="add3", inputs=(0, INPUT, 2), shape=shape, multipliers=(0.7, 0.25, 0.5), **here | {"high": 130}),
        Add(name="signed", inputs=(0, 1), shape=shape, scale=1.0, multipliers=(1.0, 1.0)),
        Concat(name="cat", inputs=(2, 3, 1, 0), shape=(9, 8, 24), multipliers=(1.0, 0.6, 1.0, 1.7), **here),
        MaxPool(name="max", inputs=(5,), shape=(5, 4, 24), kernel=(3, 2), stride=(2, 2), padding=(1, 0), **moved),
        MeanPool(
            name="mean", inputs=(5,), shape=(4, 5, 24), kernel=(3, 2), stride=(2, 2), padding=(0, 1), multiplier=0.19,
            **here | {"low": 3},
        ),
        Table(name="table", inputs=(6,), shape=(5, 4, 24), table=table, slope=none, **moved),
        Table(name="to int8", inputs=(6,), shape=(5, 4, 24), scale=1.0, table=table.view(np.int8), slope=none),
        Table(name="to uint8", inputs=(1,), shape=shape, table=table, slope=none, **moved),
        Channels(name="channels", inputs=(2,), shape=(9, 8, 4), order=order, **moved),
        MeanPool(
            name="global", inputs=(8,), shape=(1, 1, 24), scale=1.0, kernel=(5, 4), stride=(5, 4), multiplier=0.05
        ),
        Mul(name="gate", inputs=(8, 12), shape=(5, 4, 24), multiplier=0.011, **here),
        Mul(name="square", inputs=(8, 9), shape=(5, 4, 24), scale=1.0, multiplier=0.004),
        Slice(name="slice", inputs=(2,), shape=(5, 4, 12), offset=(0, 1, -3), step=(2, 2), **moved),
        Flatten(name="flat", inputs=(15,), shape=(1, 1, 240), **moved),
        *resampled(0, 16, **moved),
        Table(name="tables", inputs=(6,), shape=(5, 4, 24), table=random.integers(0, 256, (24, 256), np.uint8),
              slope=np.zeros((24, 256), np.float32), **moved),
        replace(first, name="last", inputs=(0,), signed=True, low=-128, high=np.full(6, 127, np.int32)),
        shape=shape,
    )  # fmt: skip


@pytest.mark.parametrize("whole", [every_layer_type(), every_layer_type_unsigned()], ids=["int8", "uint8"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [1, 5])
def test_every_layer_type(path: str, count: int, whole: Network) -> None:
    x = images(np.random.default_rng(4), count, whole.input_shape)
    expected = reference.run(whole, x)
    run = Engine(whole, path)
    for index, (y, e) in enumerate(zip(run.run(x), expected, strict=True)):
        assert y.dtype == whole.dtype_of(index), whole.layers[index].name
        assert np.array_equal(y, e), whole.layers[index].name
        operands = [x if i == INPUT else expected[i] for i in whole.layers[index].inputs]
        assert np.array_equal(run.fault_free(index, operands), e), whole.layers[index].name


def test_a_grouped_dilated_layer_on_which_torch_crashed() -> None:
    random = np.random.default_rng(3)
    layer = conv(random, (4, 1, 4), 38, (3, 2), stride=(2, 2), padding=(3, 3), dilation=(3, 2), groups=2)
    x = images(random, 1, (4, 1, 4))
    expected = reference.layer(layer, [x])
    for path in PATHS:
        assert np.array_equal(Engine(network(layer, shape=(4, 1, 4)), path).fault_free(0, [x]), expected)


def test_read_only_and_strided_inputs() -> None:
    layer = conv(np.random.default_rng(3), (5, 5, 4), 8, (3, 3))
    x = images(np.random.default_rng(4), 4, (5, 5, 4))
    expected = reference.layer(layer, [x[::2]])
    run = Engine(network(layer, shape=(5, 5, 4)))
    x.flags.writeable = False
    assert np.array_equal(run.fault_free(0, [x[::2]]), expected)


def test_results_do_not_depend_on_threads_and_threads_may_share_an_engine() -> None:
    layer = conv(np.random.default_rng(3), (14, 14, 16), 48, (3, 3), padding=(1, 1))
    x = images(np.random.default_rng(4), 3, (14, 14, 16))
    struck = flips(layer, x, Rates.uniform(1e-3), 3)
    expected = [reference.replica(layer, x, f) for f in struck]
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            run = Engine(network(layer, shape=(14, 14, 16)))
            results: list[list[np.ndarray]] = []
            users = [threading.Thread(target=lambda: results.append(run.replicas(0, x, struck))) for _ in range(4)]  # noqa: B023
            for user in users:
                user.start()
            for user in users:
                user.join()
            assert len(results) == 4
            for actual in results:
                assert all(np.array_equal(a, e) for a, e in zip(actual, expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_what_is_wrong_with_a_call_is_said() -> None:
    whole = every_layer_type()
    run = Engine(whole)
    x = images(np.random.default_rng(4), 2, whole.input_shape)
    with pytest.raises(ValueError, match="expected auto, vnni, cuda, portable"):
        Engine(whole, "fast")
    with pytest.raises(ValueError, match=r"network input: expected int8 of shape \(N, 9, 8, 6\)"):
        run.run(x[:, 1:])
    with pytest.raises(ValueError, match="expected int8"):
        run.fault_free(0, [x.view(np.uint8)])
    with pytest.raises(ValueError, match="takes 2 operands, got 1"):
        run.fault_free(1, [x])
    with pytest.raises(ValueError, match=r"layer 1 \(add\) is a Add"):
        run.replicas(1, x, [Flips()])
    with pytest.raises(ValueError, match=r"positions must lie in 0\.\.863"):
        run.elements(0, x, np.array([864]))
    wide = replace(conv(np.random.default_rng(1), (1, 1, 4), 2), bias=np.full(2, 2**31 - 1, np.int32))
    with pytest.raises(ValueError, match="beyond int32"):
        Engine(network(wide, shape=(1, 1, 4)))


@pytest.mark.parametrize(("name", "count"), [("resnet20", 8), ("squeezenet1_1", 2), ("mobilenet_v2", 2)])
def test_whole_networks_on_real_images_are_equal_on_all_paths(name: str, count: int, shared_dir: Path) -> None:
    from accelsim import lowering, zoo

    if len(PATHS) < 2:
        pytest.skip("only the portable path runs here")
    cifar = name == "resnet20"
    data = np.load(shared_dir / "data" / ("cifar10.npz" if cifar else "imagenet224.npz"))
    file = {"resnet20": "cifar10_resnet20", "mobilenet_v2": "mobilenet_v2_bnfolded"}.get(name, name)
    module = zoo.build(name)
    zoo.load_weights(module, shared_dir / "weights" / f"{file}.safetensors")
    photos = data["test_images"] if cifar else data["val_images"][:4, ::2, ::2]
    with few_rounds():
        whole = lowering.lower(module, photos[:4], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), name)
    x = whole.quantize_images(photos[:count])
    runs = [Engine(whole, path).run(x) for path in PATHS]
    for index, outputs in enumerate(zip(*runs, strict=True)):
        assert all(np.array_equal(outputs[0], y) for y in outputs[1:]), whole.layers[index].name
    # One small layer against the oracle too, so that the paths are not wrong together.
    index = max(i for i, _ in whole.convs())
    (source,) = whole.layers[index].inputs
    operand = x if source == INPUT else runs[0][source]
    assert np.array_equal(runs[0][index], reference.layer(whole.layers[index], [operand]))


def test_portable_runs_dilated_layers_of_one_group() -> None:
    """torch's oneDNN crashed the process on this one with channels-last images."""
    random = np.random.default_rng(0)
    conv = Conv(
        name="c", inputs=(INPUT,), shape=(2, 2, 2), scale=1.0, weight=random.integers(-128, 128, (2, 2, 3, 1), np.int8),
        bias=np.zeros(2, np.int32), weight_scale=np.ones(2, np.float32), multiplier=np.full(2, 0.01, np.float32),
        stride=(3, 3), padding=(2, 2), dilation=(2, 2),
    )  # fmt: skip
    table = np.zeros((2, 256), np.int8)
    network = Network(name="n", input_shape=(5, 1, 2), input_scale=1.0, input_table=table, layers=(conv,))
    for batch in (1, 2, 3) * 20:
        x = random.integers(-128, 128, (batch, 5, 1, 2), np.int8)
        assert np.array_equal(Engine(network, "portable").run(x)[0], reference.replica(conv, x, Flips()))
