"""Table I's conversions against the definition, one weight at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim.int8.network import INPUT, Conv, Network, multiplier
from accelsim.int8.parameters import dequantize, quantize


def made(seed: int, out: int = 4, inner: int = 3, bias: int = 10_000) -> Network:
    """Two MAC layers in a row, with random integers and scales."""
    rng = np.random.default_rng(seed)
    layers, channels, in_scale = [], inner, float(np.float32(0.02))
    for index in range(2):
        scale = float(np.float32(rng.uniform(0.01, 0.1)))
        weight_scale = rng.uniform(1e-4, 1e-2, out).astype(np.float32)
        layers.append(
            Conv(
                name=f"conv{index}",
                inputs=(index - 1,),
                shape=(4, 4, out),
                scale=scale,
                weight=rng.integers(-127, 128, (out, channels, 3, 3)).astype(np.int8),
                bias=rng.integers(-bias, bias + 1, out).astype(np.int32),
                weight_scale=weight_scale,
                multiplier=multiplier(in_scale, weight_scale, scale),
                padding=(1, 1),
                low=0,
            )
        )
        channels, in_scale = out, scale
    table = np.tile((np.arange(256) - 128).astype(np.int8), (inner, 1))
    return Network(
        name="made", input_shape=(4, 4, inner), input_scale=float(np.float32(0.02)), input_table=table,
        layers=tuple(layers),
    )  # fmt: skip


def same(a: Network, b: Network) -> bool:
    return all(
        np.array_equal(getattr(x, name), getattr(y, name))
        for (_, x), (_, y) in zip(a.convs(), b.convs(), strict=True)
        for name in ("weight", "bias", "weight_scale", "multiplier")
    )


@given(st.integers(0, 2**32), st.integers(0, 2**22))
@settings(max_examples=50, deadline=None)
def test_a_network_survives_the_round_trip(seed: int, bias: int) -> None:
    network = made(seed, bias=bias)
    assert same(quantize(network, dequantize(network)), network)


def test_dequantize_is_scale_times_integer() -> None:
    network = made(1)
    for index, (weight, bias) in dequantize(network).items():
        layer = network.layers[index]
        assert weight.dtype == bias.dtype == np.float32
        for o in range(4):
            np.testing.assert_array_equal(weight[o], layer.weight[o].astype(np.float32) * layer.weight_scale[o])
            step = float(network.scale_of(layer.inputs[0])) * float(layer.weight_scale[o])
            assert bias[o] == np.float32(int(layer.bias[o]) * step)


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_each_weight_is_the_nearest_step_or_its_channel_is_rescaled(seed: int) -> None:
    network = made(seed)
    rng = np.random.default_rng(seed)
    parameters = {
        i: (w * rng.uniform(0.5, 1.5, (len(w), 1, 1, 1)).astype(np.float32), b + np.float32(0.01))
        for i, (w, b) in dequantize(network).items()
    }
    after = quantize(network, parameters)
    for index, layer in after.convs():
        before = network.layers[index]
        weight, bias = parameters[index]
        in_scale = network.scale_of(before.inputs[0])
        np.testing.assert_array_equal(layer.multiplier, multiplier(in_scale, layer.weight_scale, before.scale))
        for o in range(len(weight)):
            if np.abs(weight[o]).max() > before.weight_scale[o] * np.float32(127.5):
                assert layer.weight_scale[o] == np.abs(weight[o]).max() / np.float32(127)
                assert np.abs(layer.weight[o]).max() == 127
            else:
                assert layer.weight_scale[o] == before.weight_scale[o]
            for got, real in zip(layer.weight[o].ravel(), weight[o].ravel(), strict=True):
                assert got == min(127, max(-127, round(float(real / layer.weight_scale[o]))))
            step = float(in_scale) * float(layer.weight_scale[o])
            assert layer.bias[o] == round(float(bias[o]) / step)


def test_nothing_else_changes() -> None:
    network = made(3)
    after = quantize(network, dequantize(network))
    for before, layer in zip(network.layers, after.layers, strict=True):
        for name in ("name", "inputs", "shape", "scale", "stride", "padding", "dilation", "groups", "low", "high"):
            assert np.array_equal(getattr(layer, name), getattr(before, name))
    assert after.input_table is network.input_table


def test_accumulators_stay_within_int32_whatever_the_bias() -> None:
    network = made(4)
    parameters = {i: (w, np.full_like(b, 1e30)) for i, (w, b) in dequantize(network).items()}
    for _, layer in quantize(network, parameters).convs():
        largest = int(layer.bias.max()) + 128 * 128 * math.prod(layer.weight.shape[1:])
        assert largest == 2**31 - 1


def test_a_dead_channel_keeps_its_scale() -> None:
    network = made(5)
    parameters = {i: (np.zeros_like(w), b) for i, (w, b) in dequantize(network).items()}
    for index, layer in quantize(network, parameters).convs():
        assert not layer.weight.any()
        np.testing.assert_array_equal(layer.weight_scale, network.layers[index].weight_scale)


def test_says_which_layer_does_not_fit() -> None:
    network = made(6)
    good = dequantize(network)
    weight, bias = good[1]
    with pytest.raises(ValueError, match=r"layer 1 \(conv1\): no parameters"):
        quantize(network, {0: good[0]})
    with pytest.raises(ValueError, match=r"layer 1 \(conv1\): weight is float64"):
        quantize(network, {**good, 1: (weight.astype(np.float64), bias)})
    with pytest.raises(ValueError, match=r"layer 1 \(conv1\): bias is float32 of shape \(3,\), expected .* \(4,\)"):
        quantize(network, {**good, 1: (weight, bias[:3])})
    poisoned = weight.copy()
    poisoned[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"layer 1 \(conv1\): weight holds values that are not finite"):
        quantize(network, {**good, 1: (poisoned, bias)})
    assert INPUT not in good
