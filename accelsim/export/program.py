"""A network as a program of torch (``torch.export``): loads and runs where torch is, without R2F.

``torch.export.load("model.pt2").module()(images)``: images uint8 (N, H, W, C) to the real numbers (N, H, W, C) that the
network's integers stand for, float32. The integers are the engine's, to the bit: sums are exact as long as no partial sum
passes the format's integers, 2^24 in float32 and 2^53 in float64, and each layer takes the format that holds its own.
"""

from __future__ import annotations

import io
from typing import assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accelsim.int8.network import (
    INPUT,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Interleave,
    Layer,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Resample,
    Slice,
    Table,
)
from accelsim.int8.places import dense, pool_ends, windows
from accelsim.int8.walk import walk


class Program(nn.Module):
    """The network as operators of torch on integers in float tensors (N, C, H, W)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.pixels = nn.Buffer(torch.tensor(network.input_table.reshape(-1)).float())
        self.first = nn.Buffer(256 * torch.arange(network.input_shape[2]))
        for index, layer in enumerate(network.layers):
            for name, array in _arrays(network, layer).items():
                self.register_buffer(f"{name}{index}", torch.tensor(array))

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, H, W, C) of uint8 images (N, H, W, C)."""
        values = {INPUT: self.pixels[images.long() + self.first].permute(0, 3, 1, 2)}
        y = values[INPUT]
        for index, layer, operands in walk(self.network, values):
            y = values[index] = self._layer(index, layer, operands)
        return y.permute(0, 2, 3, 1) * self.network.layers[-1].scale

    def _layer(self, index: int, layer: Layer, operands: list[Tensor]) -> Tensor:
        x = operands[0]
        match layer:
            case Conv():
                weight, bias = self._of("weight", index), self._of("bias", index)
                dtype = weight.dtype
                acc = F.conv2d(x.to(dtype), weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
                scaled = torch.round(acc.float() * self._of("multiplier", index))
                return torch.minimum(scaled.clamp(min=layer.low), self._of("high", index))
            case Add():
                parts = [torch.round(one * m) for one, m in zip(operands, layer.multipliers, strict=True)]
                return torch.stack(parts).sum(0).clamp(layer.low, layer.high)
            case Concat():
                parts = [torch.round(one * m) for one, m in zip(operands, layer.multipliers, strict=True)]
                return torch.cat(parts, 1).clamp(layer.low, layer.high)
            case MaxPool():
                source = self.network.shape_of(layer.inputs[0])
                ends = pool_ends(layer, source)
                (py, px), lowest = layer.padding, -128.0 if layer.signed else 0.0
                padded = F.pad(x, (px, ends[1], py, ends[0]), value=lowest)
                return F.max_pool2d(padded, layer.kernel, layer.stride, 0, layer.dilation)
            case MeanPool():
                # A sum of bytes over a window, as a mean times its size, would be rounded: a convolution with ones is exact.
                ones = self._of("ones", index)
                total = F.conv2d(x.double(), ones, None, layer.stride, layer.padding, 1, x.shape[1])
                return torch.round(total.float() * layer.multiplier).clamp(layer.low, layer.high)
            case Mul():
                return torch.round((x * operands[1]) * layer.multiplier).clamp(layer.low, layer.high)
            case Table():
                signed = self.network.dtype_of(layer.inputs[0]) == np.int8
                places = (x + 128 if signed else x).long()
                if layer.table.ndim > 1:
                    places = places + self._of("first", index)
                return self._of("table", index)[places]
            case Channels():
                return x[:, self._of("order", index)]
            case Flatten():
                return x.reshape(x.shape[0], -1, 1, 1)
            case Slice():
                return _slice(layer, x)
            case Interleave():
                h, w, c = layer.shape
                y = x.new_zeros((x.shape[0], c, h, w))
                shapes = [self.network.shape_of(i) for i in layer.inputs]
                for number, channels, of, to in windows(layer, shapes):
                    y[:, :, to[0], to[1]] = operands[number][:, channels, of[0], of[1]]
                return y
            case Resample():
                if layer.moves:
                    return x[:, :, self._of("rows", index)][:, :, :, self._of("columns", index)]
                # In float64 the sums are exact, whatever their order.
                total = self._of("by_row", index) @ x.double() @ self._of("by_column", index).T
                return torch.round(total.float() * layer.multiplier)
            case _:
                assert_never(layer)

    def _of(self, name: str, index: int) -> Tensor:
        found: Tensor = getattr(self, f"{name}{index}")
        return found


def _arrays(network: Network, layer: Layer) -> dict[str, np.ndarray]:
    """What a layer keeps, by name."""
    match layer:
        case Conv():
            bound = 255 * np.abs(layer.weight.astype(np.int64)).sum(axis=(1, 2, 3)) + np.abs(layer.bias.astype(np.int64))
            dtype = np.float32 if int(bound.max(initial=0)) < 2**24 else np.float64
            a_channel = (1, -1, 1, 1)
            return {
                "weight": layer.weight.astype(dtype),
                "bias": layer.bias.astype(dtype),
                "multiplier": layer.multiplier.reshape(a_channel),
                "high": layer.high.astype(np.float32).reshape(a_channel),
            }
        case MeanPool():
            return {"ones": np.ones((layer.shape[2], 1, *layer.kernel))}
        case Table():
            first = np.arange(0, layer.table.size, 256).reshape(-1, 1, 1)
            table = {"table": layer.table.reshape(-1).astype(np.float32)}
            return table if layer.table.ndim == 1 else table | {"first": first}
        case Channels():
            return {"order": layer.order.astype(np.int64)}
        case Resample():
            if layer.moves:
                return {"rows": layer.rows[:, 0].astype(np.int64), "columns": layer.columns[:, 0].astype(np.int64)}
            h, w, _ = network.shape_of(layer.inputs[0])
            return {
                "by_row": dense(layer.rows, layer.row_weights, h).astype(np.float64),
                "by_column": dense(layer.columns, layer.column_weights, w).astype(np.float64),
            }
        case _:
            return {}


def _slice(layer: Slice, x: Tensor) -> Tensor:
    """A strided window of x (N, C, H, W), zero where it reaches past it."""
    sizes = (x.shape[2], x.shape[3], x.shape[1])
    before = [max(0, -offset) for offset in layer.offset]
    steps = (*layer.step, 1)
    ends = [o + (n - 1) * s + 1 for o, n, s in zip(layer.offset, layer.shape, steps, strict=True)]
    after = [max(0, end - size) for end, size in zip(ends, sizes, strict=True)]
    y = F.pad(x, (before[1], after[1], before[0], after[0], before[2], after[2]))
    places = [
        slice(o + b, o + b + (n - 1) * s + 1, s) for o, b, n, s in zip(layer.offset, before, layer.shape, steps, strict=True)
    ]
    return y[:, places[2], places[0], places[1]]


def exported(network: Network) -> torch.export.ExportedProgram:
    """The program of a network, for any number of images at once."""
    images = torch.zeros((2, *network.input_shape), dtype=torch.uint8)
    number = torch.export.Dim("N")
    with torch.no_grad():
        return torch.export.export(Program(network).eval(), (images,), dynamic_shapes={"images": {0: number}})


def to_bytes(network: Network) -> bytes:
    """The program as a ``.pt2`` file has it."""
    held = io.BytesIO()
    torch.export.save(exported(network), held)
    return held.getvalue()
