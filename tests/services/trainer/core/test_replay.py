"""The replayed backward pass against torch.autograd on a float copy whose values are replaced by the device's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from accelsim.engine import reference
from accelsim.int8.checks import validate
from accelsim.int8.network import (
    INPUT,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Int8,
    Layer,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Resample,
    Slice,
    Table,
    multiplier,
    operand_multiplier,
)
from accelsim.int8.places import dense
from services.trainer.core.replay import activations, replay


class Builder:
    """Appends layers with random weights and consistent scales."""

    def __init__(self, shape: tuple[int, int, int], seed: int, *, unsigned: bool = False) -> None:
        self.unsigned = unsigned
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.layers: list[Layer] = []

    def operand(self, index: int) -> tuple[tuple[int, int, int], float]:
        return (self.shape, np.float32(0.02)) if index == INPUT else (self.layers[index].shape, self.layers[index].scale)

    def add(self, layer: Layer) -> int:
        """With ``unsigned``, what cannot be negative becomes uint8."""
        if self.unsigned and isinstance(layer, Conv | Add) and layer.low == 0:
            high = np.where(np.asarray(layer.high) == 127, 255, layer.high)
            layer = replace(layer, signed=False, high=high if isinstance(layer, Conv) else int(high))
        if isinstance(layer, MaxPool) and layer.inputs[0] != INPUT:
            layer = replace(layer, signed=self.layers[layer.inputs[0]].signed)
        self.layers.append(layer)
        return len(self.layers) - 1

    def conv(self, source, out, kernel=(3, 3), stride=(1, 1), padding=(1, 1), groups=1, scale=0.03, **bounds) -> int:
        (h, w, c), in_scale = self.operand(source)
        shape = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip((h, w), padding, kernel, stride, strict=True))
        weight_scale = self.rng.uniform(1e-3, 3e-3, out).astype(np.float32)
        return self.add(
            Conv(
                name=f"conv{len(self.layers)}",
                inputs=(source,),
                shape=(*shape, out),
                scale=float(np.float32(scale)),
                weight=self.rng.integers(-127, 128, (out, c // groups, *kernel)).astype(np.int8),
                bias=self.rng.integers(-900, 900, out).astype(np.int32),
                weight_scale=weight_scale,
                multiplier=multiplier(in_scale, weight_scale, float(np.float32(scale))),
                stride=stride,
                padding=padding,
                groups=groups,
                **bounds,
            )
        )

    def pointwise(self, kind, sources, shape, scale, **more) -> int:
        scale = float(np.float32(scale))
        multipliers = tuple(operand_multiplier(self.operand(i)[1], scale) for i in sources)
        return self.add(
            kind(name=f"n{len(self.layers)}", inputs=sources, shape=shape, scale=scale, multipliers=multipliers, **more)
        )

    def network(self) -> Network:
        table = np.tile((np.arange(256) - 128).astype(np.int8), (self.shape[2], 1))
        return Network(
            name="made", input_shape=self.shape, input_scale=float(np.float32(0.02)), input_table=table,
            layers=tuple(self.layers),
        )  # fmt: skip


def everything(seed: int, *, unsigned: bool = False) -> Network:
    """One network with every layer type, every clamp, branches, a reused operand, strides and groups."""
    b = Builder((9, 9, 3), seed, unsigned=unsigned)
    stem = b.conv(INPUT, 8, low=0)
    pooled = b.add(MaxPool(name="pool", inputs=(stem,), shape=(5, 5, 8), scale=b.layers[stem].scale,
                           kernel=(3, 3), stride=(2, 2), padding=(1, 1)))  # fmt: skip
    depth = b.conv(pooled, 8, groups=8, scale=0.02, low=0, high=np.array([20, 20, 9, 30, 127, 20, 5, 15]))
    grouped = b.conv(depth, 8, groups=2)
    added = b.pointwise(Add, (pooled, grouped), (5, 5, 8), 0.04, low=0)
    slope = np.linspace(-0.3, 1.2, 256).astype(np.float32)
    table = b.add(Table(name="act", inputs=(added,), shape=(5, 5, 8), scale=float(np.float32(0.05)),
                        table=b.rng.integers(-90, 90, 256).astype(np.int8), slope=slope))  # fmt: skip
    squeezed = b.add(MeanPool(name="squeeze", inputs=(table,), shape=(1, 1, 8), scale=float(np.float32(0.02)),
                              kernel=(5, 5), stride=(1, 1),
                              multiplier=operand_multiplier(b.layers[table].scale, np.float32(0.02), 25)))  # fmt: skip
    gate = b.conv(squeezed, 8, kernel=(1, 1), padding=(0, 0), scale=0.01)
    scale = float(np.float32(0.03))
    gated = b.add(Mul(name="mul", inputs=(table, gate), shape=(5, 5, 8), scale=scale,
                      multiplier=operand_multiplier(b.layers[table].scale * b.layers[gate].scale, scale)))  # fmt: skip
    both = b.pointwise(Concat, (gated, depth), (5, 5, 16), 0.05)
    order = b.rng.permutation(16)[:12].astype(np.int32)
    shuffled = b.add(Channels(name="shuffle", inputs=(both,), shape=(5, 5, 12), scale=b.layers[both].scale, order=order))
    strided = b.conv(shuffled, 16, stride=(2, 2))
    short = b.add(Slice(name="short", inputs=(shuffled,), shape=(3, 3, 16), scale=b.layers[shuffled].scale,
                        offset=(0, 0, -2), step=(2, 2)))  # fmt: skip
    joined = b.pointwise(Add, (strided, short, strided), (3, 3, 16), 0.06)
    mean = b.add(MeanPool(name="mean", inputs=(joined,), shape=(2, 2, 16), scale=float(np.float32(0.03)),
                          kernel=(2, 2), stride=(1, 1),
                          multiplier=operand_multiplier(b.layers[joined].scale, np.float32(0.03), 4)))  # fmt: skip
    flat = b.add(Flatten(name="flat", inputs=(mean,), shape=(1, 1, 64), scale=b.layers[mean].scale))
    b.conv(flat, 5, kernel=(1, 1), padding=(0, 0), scale=0.1)
    return b.network()


def faulty(network: Network, x: Int8, seed: int) -> dict[int, Int8]:
    """Outputs of the MAC layers of a run in which each got some random bit flips."""
    rng = np.random.default_rng(seed)
    values: list[Int8] = []
    for layer in network.layers:
        y = reference.layer(layer, [x if i == INPUT else values[i] for i in layer.inputs])
        if isinstance(layer, Conv):
            y = reference.flip(y, np.unique(rng.integers(0, y.size * 8, 1 + y.size // 100)))
        values.append(y)
    return {i: values[i] for i, _ in network.convs()}


def autograd(network: Network, x: Int8, values: list[Int8], labels: np.ndarray):
    """Loss and gradients by torch.autograd: each layer's real function, its value then replaced by the device's."""
    parameters = {}
    outputs: list[torch.Tensor] = []
    planes = [torch.tensor(v).permute(0, 3, 1, 2).double() * layer.scale
              for v, layer in zip(values, network.layers, strict=True)]  # fmt: skip
    image = torch.tensor(x).permute(0, 3, 1, 2).double() * network.input_scale
    for index, layer in enumerate(network.layers):
        sources = [image if i == INPUT else outputs[i] for i in layer.inputs]
        a = sources[0]
        if isinstance(layer, Conv):
            scale = torch.tensor(layer.weight_scale).double()
            weight = (torch.tensor(layer.weight).double() * scale[:, None, None, None]).requires_grad_()
            bias = torch.zeros(len(weight), dtype=torch.float64).requires_grad_()
            parameters[index] = (weight, bias)
            y = F.conv2d(a, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        elif isinstance(layer, Add):
            y = sum(sources)
        elif isinstance(layer, Concat):
            y = torch.cat(sources, dim=1)
        elif isinstance(layer, MaxPool):
            y = F.max_pool2d(a, layer.kernel, layer.stride, layer.padding)
        elif isinstance(layer, MeanPool):
            y = F.avg_pool2d(a, layer.kernel, layer.stride, layer.padding)
        elif isinstance(layer, Table):
            operand = values[layer.inputs[0]]
            steps = torch.tensor(operand.astype(np.int64) + (128 if operand.dtype == np.int8 else 0)).permute(0, 3, 1, 2)
            tables = torch.tensor(layer.slope).double().broadcast_to(layer.shape[2], 256)
            y = a * tables[torch.arange(layer.shape[2])[:, None, None], steps]
        elif isinstance(layer, Resample):
            by_row = torch.tensor(dense(layer.rows, layer.row_weights, a.shape[2])).double()
            by_column = torch.tensor(dense(layer.columns, layer.column_weights, a.shape[3])).double()
            y = by_row @ a @ by_column.T / (by_row[0].sum() * by_column[0].sum())
        elif isinstance(layer, Channels):
            y = a[:, torch.tensor(layer.order).long()]
        elif isinstance(layer, Slice):
            # Only the shape of the option-A shortcut: every second pixel, two new channels on either side.
            y = F.pad(a[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        elif isinstance(layer, Mul):
            y = a * sources[1]
        else:
            assert isinstance(layer, Flatten)
            y = a.flatten(1)[:, :, None, None]
        if getattr(layer, "low", -128) == 0:
            open_ = planes[index] > 0
            high = np.asarray(layer.high)
            high = torch.tensor(np.where(high < (127 if layer.signed else 255), high, 1000)).reshape(-1, 1, 1)
            open_ &= planes[index] < high * layer.scale
            y = torch.where(open_, y, y.detach())
        outputs.append(planes[index] + (y - y.detach()))
    target = torch.tensor(labels)
    loss = F.cross_entropy(outputs[-1].flatten(1), target if target.ndim == 1 else target.double())
    leaves = [leaf for pair in parameters.values() for leaf in pair]
    found = torch.autograd.grad(loss, leaves)
    return loss.item(), {index: found[2 * k : 2 * k + 2] for k, index in enumerate(parameters)}


def fault_free(network: Network):
    return lambda index, operands: reference.layer(network.layers[index], operands)


def resampled() -> Network:
    """A table a channel, means of pixels and pixels more than once between MAC layers."""
    b = Builder((6, 5, 3), 4)
    stem = b.conv(INPUT, 8)
    slope = b.rng.uniform(-0.5, 1.5, (8, 256)).astype(np.float32)
    table = b.add(Table(name="act", inputs=(stem,), shape=(6, 5, 8), scale=float(np.float32(0.05)),
                        table=b.rng.integers(-90, 90, (8, 256)).astype(np.int8), slope=slope))  # fmt: skip
    rows, columns = (b.rng.integers(0, n, (m, 2)).astype(np.int32) for n, m in ((6, 9), (5, 7)))
    weights = [np.sort(b.rng.multinomial(4, (0.5, 0.5), len(side))).astype(np.int32) for side in (rows, columns)]
    blend = b.add(Resample(name="blend", inputs=(table,), shape=(9, 7, 8), scale=b.layers[table].scale, rows=rows,
                           row_weights=weights[0], columns=columns, column_weights=weights[1], multiplier=1 / 16))  # fmt: skip
    rows, columns = (np.array(places, np.int32)[:, None] for places in ((2, 1, 0, 1, 8), (6, 6, 0, 3)))
    moved = b.add(Resample(name="move", inputs=(blend,), shape=(5, 4, 8), scale=b.layers[table].scale, rows=rows,
                           row_weights=np.ones_like(rows), columns=columns, column_weights=np.ones_like(columns),
                           multiplier=1.0))  # fmt: skip
    b.conv(moved, 5, kernel=(5, 4), padding=(0, 0), scale=0.1)
    return b.network()


def test_resampling_and_tables_a_channel_equal_autograd() -> None:
    network = resampled()
    validate(network)
    x = np.random.default_rng(5).integers(-128, 128, (3, 6, 5, 3), np.int8)
    outputs = faulty(network, x, 6)
    labels = np.random.default_rng(7).integers(0, 5, 3)
    found = replay(network, x, outputs, labels, fault_free(network))
    values = activations(network, x, outputs, fault_free(network))
    value, wanted = autograd(network, x, [values[i] for i in range(len(network.layers))], labels)
    assert found.loss == pytest.approx(value, rel=1e-5)
    for index, pair in wanted.items():
        for got, want in zip(found.gradients[index], pair, strict=True):
            assert float(want.abs().max()) > 0
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
def test_equals_autograd(seed: int, soft: bool, unsigned: bool) -> None:
    network = everything(seed, unsigned=unsigned)
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (4, 9, 9, 3)).astype(np.int8)
    labels = rng.dirichlet(np.ones(5), 4).astype(np.float32) if soft else rng.integers(0, 5, 4)
    outputs = faulty(network, x, seed)
    for index, layer in network.convs():
        if layer.high.min() < 127:
            assert 0.05 < np.mean(outputs[index] >= layer.high) < 0.95, "the test itself never meets the ReLU6"
    got = replay(network, x, outputs, labels, fault_free(network))
    values = activations(network, x, outputs, fault_free(network))
    loss, gradients = autograd(network, x, [values[i] for i in range(len(network.layers))], labels)
    assert got.loss == pytest.approx(loss, rel=1e-5)
    assert got.gradients.keys() == gradients.keys()
    for index, pair in gradients.items():
        for mine, theirs in zip(got.gradients[index], pair, strict=True):
            assert theirs.abs().max() > 0, f"layer {index}: the test itself is blind"
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    norm = sum(float((g**2).sum()) for pair in gradients.values() for g in pair) ** 0.5
    assert got.norm == pytest.approx(norm, rel=1e-4)


def test_same_bytes_same_gradients() -> None:
    network = everything(0)
    x = np.random.default_rng(0).integers(-128, 128, (16, 9, 9, 3)).astype(np.int8)
    outputs = faulty(network, x, 0)
    labels = np.arange(16) % 5
    first, second = (replay(network, x.copy(), outputs, labels, fault_free(network)) for _ in range(2))
    assert (first.loss, first.norm) == (second.loss, second.norm)
    for index, pair in first.gradients.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, second.gradients[index], strict=True))


def test_refuses_what_does_not_fit() -> None:
    network = everything(0)
    x = np.zeros((2, 9, 9, 3), np.int8)
    outputs = faulty(network, x, 0)
    recompute = fault_free(network)
    with pytest.raises(ValueError, match=r"layer 0 \(conv0\): the device's output is missing"):
        replay(network, x, {i: y for i, y in outputs.items() if i}, np.zeros(2, np.int64), recompute)
    with pytest.raises(ValueError, match=r"layer 0 \(conv0\): output is int8 of shape \(1, 9, 9, 8\)"):
        replay(network, x, {**outputs, 0: outputs[0][:1]}, np.zeros(2, np.int64), recompute)
    with pytest.raises(ValueError, match="labels run from 0 to 5, but the network knows classes 0 to 4"):
        replay(network, x, outputs, np.array([0, 5]), recompute)
    with pytest.raises(ValueError, match="labels have shape"):
        replay(network, x, outputs, np.zeros(3, np.int64), recompute)


def test_a_small_network_gives_the_same_bits_on_any_number_of_threads() -> None:
    network = everything(0)
    x = np.random.default_rng(0).integers(-128, 128, (16, 9, 9, 3)).astype(np.int8)
    outputs, labels = faulty(network, x, 0), np.arange(16) % 5
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(replay(network, x, outputs, labels, fault_free(network)))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert (other.loss, other.norm) == (found[0].loss, found[0].norm)
        for index, pair in found[0].gradients.items():
            assert all(torch.equal(a, b) for a, b in zip(pair, other.gradients[index], strict=True))


def test_received_tensors_may_be_read_only() -> None:
    network = everything(1)
    x = np.zeros((2, 9, 9, 3), np.int8)
    outputs = faulty(network, x, 1)
    expected = replay(network, x, outputs, np.array([0, 1]), fault_free(network))
    labels = np.array([0, 1])
    for array in (x, labels, *outputs.values()):
        array.flags.writeable = False
    assert replay(network, x, outputs, labels, fault_free(network)).norm == expected.norm
