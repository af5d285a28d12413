"""The replayed backward pass: gradients of the network that the device really ran (architecture.md, "Learning").

The device's outputs stand in for the server's own, so nothing of the forward pass through the MAC layers is computed
again. Gradients are taken in real units (``scale * integer``) and go straight through rounding and faults: a MAC layer
is differentiated at the input that the device fed it, whatever its faults then made of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, assert_never

import numpy as np
import torch
from torch import Tensor

from accelsim.int8.network import (
    INPUT,
    INT8_MAX,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Int8,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Slice,
    Table,
)
from accelsim.int8.walk import walk
from services.trainer.core.loss import Labels, loss

Recompute = Callable[[int, Sequence[Int8]], Int8]
"""(index, operands) to the output of a layer that the device's reliable processor runs; ``Engine.fault_free`` is one."""
Gradients = dict[int, tuple[Tensor, Tensor]]
"""Index of each MAC layer: gradients of its weight (O, I/groups, R, S) and its bias (O,), float32, real units."""

SHARED_MACS = 10**8
"""Products of a batch's forward pass from which on the backward pass runs on all of torch's threads."""


class Replay(NamedTuple):
    """What one replay found. ``norm`` is the Euclidean norm over all gradients."""

    loss: float
    correct: int
    norm: float
    gradients: Gradients


def replay(network: Network, x: Int8, outputs: Mapping[int, Int8], labels: Labels, recompute: Recompute) -> Replay:
    """Loss of the device's outputs against the labels, and its gradients.

    ``network`` is the int8 network as the device ran it, ``x`` its input (N, H, W, C), ``outputs`` the device's output
    (N, H, W, C) of each MAC layer by index. The other layers are exact on the device, so ``recompute`` gives them.

    The loss is ``services.trainer.core.loss``'s, averaged over the batch. The same arguments and number of torch threads give
    the same gradients, bit for bit; small networks run on one thread, whatever torch is set to.

    Raises ValueError if an output is missing or misshaped, or if the labels do not fit.
    """
    values = activations(network, x, outputs, recompute)
    with _threads(network, len(x)):
        found = loss(network, values[len(network.layers) - 1], labels)
        gradients = _backward(network, values, found.gradient)
        return Replay(found.value, found.correct, _norm(gradients), gradients)


@contextmanager
def _threads(network: Network, batch: int) -> Iterator[None]:
    """One thread for the block where the layers are too small to share out: waking the others would cost more."""
    macs = sum(layer.weight.size * layer.shape[0] * layer.shape[1] for _, layer in network.convs()) * batch
    threads = torch.get_num_threads()
    if macs >= SHARED_MACS or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def activations(network: Network, x: Int8, outputs: Mapping[int, Int8], recompute: Recompute) -> dict[int, Int8]:
    """Every activation on the device by index, INPUT's too, each (N, H, W, C): received for MAC layers, else recomputed."""
    values: dict[int, Int8] = {INPUT: x}
    for index, layer, operands in walk(network, values, keep=True):
        if isinstance(layer, Conv):
            if index not in outputs:
                raise ValueError(f"layer {index} ({layer.name}): the device's output is missing")
            value = outputs[index]
        else:
            value = recompute(index, operands)
        if value.dtype != np.int8 or value.shape != (len(x), *layer.shape):
            raise ValueError(
                f"layer {index} ({layer.name}): output is {value.dtype} of shape {value.shape}, "
                f"expected int8 of shape {(len(x), *layer.shape)}"
            )
        values[index] = value
    return values


def _backward(network: Network, values: dict[int, Int8], gradient: Tensor) -> Gradients:
    """Walks the layers from last to first; ``pending`` holds the gradient at each output still to be reached."""
    pending: dict[int, Tensor] = {len(network.layers) - 1: gradient}
    batch = len(values[INPUT])
    planes: dict[int, Tensor] = {}
    found: Gradients = {}

    def plane(index: int) -> Tensor:
        """Integers of an activation as float32 planes, made once for the layers that read it and its own clamp."""
        if index not in planes:
            planes[index] = _planes(values[index])
        return planes[index]

    def send(index: int, gradient: Tensor) -> None:
        if index != INPUT:
            pending[index] = pending[index] + gradient if index in pending else gradient

    for index in reversed(range(len(network.layers))):
        layer = network.layers[index]
        if index not in pending:
            continue
        gradient = pending.pop(index)
        if isinstance(layer, Conv | Add | Concat | MeanPool | Mul) and layer.low == 0:
            gradient = _through_relu(layer, plane(index), gradient)
        planes.pop(index, None)
        source = layer.inputs[0]
        shape = (batch, *network.shape_of(source))
        match layer:
            case Conv():
                below, weight, bias = _through_conv(layer, plane(source), gradient, network.scale_of(source), source != INPUT)
                found[index] = (weight, bias)
                if below is not None:
                    send(source, below)
            case Add():
                for source in layer.inputs:
                    send(source, gradient)
            case Concat():
                sizes = [network.shape_of(source)[2] for source in layer.inputs]
                for source, part in zip(layer.inputs, torch.split(gradient, sizes, dim=1), strict=True):
                    send(source, part)
            case MaxPool():
                send(source, _through_max(layer, plane(source), gradient))
            case MeanPool():
                send(source, _through_mean(layer, network, shape, gradient))
            case Table():
                slope = layer.slope[values[source].view(np.uint8) ^ 128]
                send(source, gradient * torch.from_numpy(slope).permute(0, 3, 1, 2))
            case Channels():
                whole = _zeros(shape)
                send(source, whole.index_copy_(1, torch.from_numpy(layer.order.astype(np.int64)), gradient))
            case Slice():
                send(source, _through_slice(layer, shape, gradient))
            case Mul():
                first, second = layer.inputs
                at_first, at_second = _through_mul(plane(first), plane(second), gradient)
                send(first, at_first * network.scale_of(second))
                send(second, at_second * network.scale_of(first))
            case Flatten():
                n, h, w, c = shape
                send(source, gradient.reshape(n, c, h, w).contiguous(memory_format=torch.channels_last))
            case _:
                assert_never(layer)
    for index, layer in network.convs():
        if index not in found:
            raise ValueError(f"layer {index} ({layer.name}): the network's output does not depend on it")
    return found


def _planes(value: Int8) -> Tensor:
    """An activation (N, H, W, C) as torch sees it: (N, C, H, W) float32, still lying channels-last."""
    return torch.from_numpy(value.astype(np.float32)).permute(0, 3, 1, 2)


def _through_relu(layer: Conv | Add | Concat | MeanPool | Mul, y: Tensor, gradient: Tensor) -> Tensor:
    """The gradient where the layer's ReLU or ReLU6 lets it pass; ``y`` holds the output's integers.

    A bound that stands for no activation (-128, or 127 where ReLU6 ends elsewhere) is where int8 saturates. That is
    rounding gone far, so the gradient goes straight through it: a channel that outgrew its range can still come back.
    """
    passed: Tensor
    if layer.high < INT8_MAX or abs(6 / layer.scale - INT8_MAX) <= 0.5:
        passed = torch.ops.aten.hardtanh_backward(gradient, y, 0, layer.high)
    else:
        passed = torch.ops.aten.threshold_backward(gradient, y, 0)
    return passed


def _through_conv(
    layer: Conv, x: Tensor, gradient: Tensor, scale: float, wants_input: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients at a MAC layer's input, weight and bias. ``x`` holds integers; ``scale`` is the value of a step."""
    weight = torch.from_numpy(layer.weight.astype(np.float32) * layer.weight_scale[:, None, None, None])
    below, at_weight, at_bias = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        [len(weight)],
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        [0, 0],
        layer.groups,
        [wants_input, True, True],
    )
    return below if wants_input else None, at_weight * scale, at_bias


def _through_max(layer: MaxPool, x: Tensor, gradient: Tensor) -> Tensor:
    """To the first of the largest integers of each window, as torch does."""
    ceil = _rounds_up(x.shape, layer, layer.dilation)
    arguments = (layer.kernel, layer.stride, layer.padding, layer.dilation, ceil)
    _, where = torch.ops.aten.max_pool2d_with_indices(x, *arguments)
    below: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(gradient, x, *arguments, where)
    return below


def _through_mean(layer: MeanPool, network: Network, shape: tuple[int, ...], gradient: Tensor) -> Tensor:
    share = layer.multiplier * layer.scale / network.scale_of(layer.inputs[0])
    n, h, w, c = shape
    if layer.kernel == (h, w) and layer.shape[:2] == (1, 1) and layer.padding == (0, 0):
        return (gradient * share).expand(n, c, h, w)
    x = _zeros(shape)
    ceil = _rounds_up(x.shape, layer, (1, 1))
    below: Tensor = torch.ops.aten.avg_pool2d_backward(
        gradient * share, x, layer.kernel, layer.stride, layer.padding, ceil, True, 1
    )
    return below


def _rounds_up(size: tuple[int, ...], layer: MaxPool | MeanPool, dilation: tuple[int, int]) -> bool:
    """Whether the pooled shape is torch's ceil_mode one. ``size`` is the operand's, (N, C, H, W)."""
    down = [
        (size[2 + i] + 2 * layer.padding[i] - dilation[i] * (layer.kernel[i] - 1) - 1) // layer.stride[i] + 1 for i in (0, 1)
    ]
    return tuple(down) != layer.shape[:2]


def _through_slice(layer: Slice, shape: tuple[int, ...], gradient: Tensor) -> Tensor:
    """Each gradient to the element that it was cut from; what was filled with zeros has none."""
    whole = torch.zeros(shape)
    to, of = [slice(None)], [slice(None)]
    for size, length, offset, step in zip(shape[1:], layer.shape, layer.offset, (*layer.step, 1), strict=True):
        first = max(0, -(offset // step))
        end = min(length, (size - 1 - offset) // step + 1)
        of.append(slice(first, max(first, end)))
        to.append(slice(offset + first * step, offset + max(first, end) * step, step))
    whole[tuple(to)] = gradient.permute(0, 2, 3, 1)[tuple(of)]
    return whole.permute(0, 3, 1, 2)


def _through_mul(a: Tensor, b: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients at both factors, each still to be scaled by the value of the other's step."""
    at_b = gradient * a
    return gradient * b, at_b if b.shape == a.shape else at_b.sum(dim=(2, 3), keepdim=True)


def _zeros(shape: tuple[int, ...]) -> Tensor:
    """Zeros (N, C, H, W), channels-last, for an activation of shape (N, H, W, C)."""
    n, h, w, c = shape
    return torch.zeros(n, h, w, c).permute(0, 3, 1, 2)


def _norm(gradients: Gradients) -> float:
    """Euclidean norm over all gradients, each tensor's in float32 and their sum in float64."""
    parts = torch._foreach_norm([gradient for pair in gradients.values() for gradient in pair])
    return float(torch.stack(parts).double().norm())
