"""The replayed backward pass: gradients of the network that the device really ran (architecture.md, "Learning").

The device's outputs stand in for the server's own, so nothing of the forward pass through the MAC layers is computed
again. Gradients are taken in real units (``scale * integer``) and go straight through rounding and faults: a MAC layer
is differentiated at the input that the device fed it, whatever its faults then made of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple, assert_never

import numpy as np
import torch
from torch import Tensor

from accelsim.int8.network import (
    INPUT,
    INT8_MAX,
    UINT8_MAX,
    Activation,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Int8,
    Interleave,
    Layer,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Resample,
    Slice,
    Table,
    UInt8,
)
from accelsim.int8.phases import bias_groups, taps_of
from accelsim.int8.places import windows
from accelsim.int8.walk import walk
from accelsim.threads import one_thread
from services.trainer.core import elementwise
from services.trainer.core.loss import Labels, loss

Recompute = Callable[[int, Sequence[Activation]], Activation]
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


class Inside(NamedTuple):
    """What happened inside the MAC layers of a pass, where that is known: by index."""

    weights: Mapping[int, Int8]
    """(O, I/groups, R, S), as they were read."""
    read: Mapping[int, Activation]
    """Input (N, H, W, C), as it was read."""
    computed: Mapping[int, Activation]
    """Output (N, H, W, C) before anything struck it."""


def replay(
    network: Network,
    x: Activation,
    outputs: Mapping[int, Activation],
    labels: Labels,
    recompute: Recompute,
    inside: Inside | None = None,
) -> Replay:
    """Loss of the device's outputs against the labels, and its gradients.

    ``network`` is the int8 network as the device ran it, ``x`` its input (N, H, W, C), ``outputs`` the device's output
    (N, H, W, C) of each MAC layer by index. The other layers are exact on the device, so ``recompute`` gives them.

    ``inside``: of a pass whose flips are known, so that gradients are taken at what was multiplied and not at what was stored.

    The loss is ``services.trainer.core.loss``'s, averaged over the batch. The same arguments and number of torch threads give
    the same gradients, bit for bit; small networks run on one thread, whatever torch is set to.

    Raises ValueError if an output is missing or misshaped, or if the labels do not fit.
    """
    values = activations(network, x, outputs, recompute)
    with _threads(network, len(x)):
        found = loss(network, values[len(network.layers) - 1], labels)
        gradients = _backward(network, values, found.gradient, inside)
        return Replay(found.value, found.correct, _norm(gradients), gradients)


def _threads(network: Network, batch: int) -> AbstractContextManager[None]:
    """One thread for the block where the layers are too small to share out: waking the others would cost more."""
    macs = sum(layer.weight.size * layer.shape[0] * layer.shape[1] for _, layer in network.convs()) * batch
    return nullcontext() if macs >= SHARED_MACS else one_thread()


def activations(
    network: Network, x: Activation, outputs: Mapping[int, Activation], recompute: Recompute
) -> dict[int, Activation]:
    """Every activation on the device by index, INPUT's too, each (N, H, W, C): received for MAC layers, else recomputed."""
    values: dict[int, Activation] = {INPUT: x}
    for index, layer, operands in walk(network, values, keep=True):
        if isinstance(layer, Conv):
            if index not in outputs:
                raise ValueError(f"layer {index} ({layer.name}): the device's output is missing")
            value = outputs[index]
        else:
            value = recompute(index, operands)
        if value.dtype != layer.dtype or value.shape != (len(x), *layer.shape):
            raise ValueError(
                f"layer {index} ({layer.name}): output is {value.dtype} of shape {value.shape}, "
                f"expected {layer.dtype} of shape {(len(x), *layer.shape)}"
            )
        values[index] = value
    return values


def _backward(network: Network, values: dict[int, Activation], gradient: Tensor, inside: Inside | None = None) -> Gradients:
    """Walks the layers from last to first; ``pending`` holds the gradient at each output still to be reached."""
    pending: dict[int, Tensor] = {len(network.layers) - 1: gradient}
    lent: set[int] = set()
    """Where what is pending is someone else's too, so that it may not be overwritten."""
    batch = len(values[INPUT])
    planes: dict[int, Tensor] = {}
    found: Gradients = {}

    def plane(index: int) -> Tensor:
        """Integers of an activation as float32 planes, made once for the layers that read it."""
        if index not in planes:
            planes[index] = elementwise.widen(values[index])
        return planes[index]

    def send(index: int, gradient: Tensor, *, owned: bool = True) -> None:
        """``owned``: nobody reads this gradient hereafter."""
        if index == INPUT:
            return
        if index not in pending:
            pending[index] = gradient
            if not owned:
                lent.add(index)
        elif index in lent:
            pending[index] = pending[index] + gradient
            lent.discard(index)
        else:
            pending[index] += gradient

    for index in reversed(range(len(network.layers))):
        layer = network.layers[index]
        planes.pop(index, None)
        if index not in pending:
            continue
        gradient = pending.pop(index)
        owned = index not in lent
        sums = None
        limits = _limits(network, layer)
        if limits is not None:
            y = values[index] if inside is None else inside.computed.get(index, values[index])
            gradient, sums = elementwise.gate(gradient, y, limits, owned=owned)
            owned = True
        source = layer.inputs[0]
        shape = (batch, *network.shape_of(source))
        match layer:
            case Conv():
                taken = plane(source)
                if inside is not None:
                    layer, taken = replace(layer, weight=inside.weights[index]), elementwise.widen(inside.read[index])
                below, weight = _through_conv(layer, taken, gradient, network.scale_of(source), source != INPUT)
                found[index] = (weight, elementwise.column_sums(gradient) if sums is None else sums)
                if below is not None:
                    send(source, below)
            case Add():
                for source in layer.inputs:
                    send(source, gradient, owned=False)
            case Concat():
                sizes = [network.shape_of(source)[2] for source in layer.inputs]
                for source, part in zip(layer.inputs, torch.split(gradient, sizes, dim=1), strict=True):
                    send(source, part, owned=owned and layer.inputs.count(source) == 1)
            case MaxPool():
                send(source, elementwise.through_max(layer, values[source], gradient))
            case MeanPool():
                below, own = _through_mean(layer, network, shape, gradient)
                send(source, below, owned=own)
            case Table():
                steps = values[source].view(np.uint8) ^ (128 if values[source].dtype == np.int8 else 0)
                slope = layer.slope[steps] if layer.slope.ndim == 1 else layer.slope[np.arange(shape[3]), steps]
                send(source, gradient * torch.from_numpy(slope).permute(0, 3, 1, 2))
            case Channels():
                send(source, elementwise.move_channels(gradient, layer.order, shape[3]))
            case Slice():
                send(source, _through_slice(layer, shape, gradient))
            case Interleave():
                for source, part in _through_interleave(layer, network, batch, gradient).items():
                    send(source, part)
            case Resample():
                send(source, _through_resample(layer, shape, gradient))
            case Mul():
                first, second = layer.inputs
                at_first, at_second = _through_mul(plane(first), plane(second), gradient)
                send(first, at_first * network.scale_of(second))
                send(second, at_second * network.scale_of(first))
            case Flatten():
                n, h, w, c = shape
                send(source, gradient.reshape(n, c, h, w).contiguous(memory_format=torch.channels_last), owned=owned)
            case _:
                assert_never(layer)
    for index, layer in network.convs():
        if index not in found:
            raise ValueError(f"layer {index} ({layer.name}): the network's output does not depend on it")
    _as_one(network, found)
    return found


def _as_one(network: Network, found: Gradients) -> None:
    """The phases of a transposed convolution learn as the one filter that they are parts of.

    Each tap is in one phase, so its gradient is there already; the bias is in all, and has the sum. What is 0 for there is no
    tap has none.
    """
    for parts in bias_groups(network):
        total = torch.stack([found[index][1][channels] for index, channels in parts]).sum(0)
        for index, channels in parts:
            found[index][1][channels] = total
    for index, taps in taps_of(network).items():
        found[index][0].mul_(torch.from_numpy(taps))


def _limits(network: Network, layer: Layer) -> UInt8 | None:
    """What ``elementwise.gate`` takes for the ReLU or ReLU6 of a layer; None where it has none.

    A bound that stands for no activation (-128, or 127 or 255 where ReLU6 ends elsewhere) is where integers saturate. That
    is rounding gone far, so the gradient goes straight through it: a channel that outgrew its range can still come back.
    """
    if not isinstance(layer, Conv | Add | Concat | MeanPool | Mul) or layer.low != 0 or not _clamps(network, layer):
        return None
    most = INT8_MAX if layer.signed else UINT8_MAX
    ends = most if abs(6 / layer.scale - most) <= 0.5 else most + 1
    high = layer.high if isinstance(layer, Conv) else np.full(layer.shape[2:], layer.high, np.int32)
    limits: UInt8 = np.maximum(np.where(high < most, high, ends) - 1, 0).astype(np.uint8)
    return limits


def _clamps(network: Network, layer: Conv | Add | Concat | MeanPool | Mul) -> bool:
    """Whether the bounds are those of an activation, and not just of what cannot be negative or larger."""
    most = INT8_MAX if layer.signed else UINT8_MAX
    signed = any(network.dtype_of(source) == np.int8 for source in layer.inputs)
    return isinstance(layer, Conv) or signed or bool(np.any(np.asarray(layer.high) < most))


def _through_conv(layer: Conv, x: Tensor, gradient: Tensor, scale: float, wants_input: bool) -> tuple[Tensor | None, Tensor]:
    """Gradients at a MAC layer's input and weight. ``x`` holds integers; ``scale`` is the value of a step.

    Asked for the bias too, torch takes a slower way for the weight.
    """
    weight = torch.from_numpy(layer.weight.astype(np.float32) * layer.weight_scale[:, None, None, None])
    below, at_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        [0, 0],
        layer.groups,
        [wants_input, True, False],
    )
    return below if wants_input else None, at_weight.mul_(scale)


def _through_mean(layer: MeanPool, network: Network, shape: tuple[int, ...], gradient: Tensor) -> tuple[Tensor, bool]:
    """The gradient at the operand, and whether its elements have memory of their own."""
    share = layer.multiplier * layer.scale / network.scale_of(layer.inputs[0])
    n, h, w, c = shape
    if layer.kernel == (h, w) and layer.shape[:2] == (1, 1) and layer.padding == (0, 0):
        return (gradient * share).expand(n, c, h, w), False
    x = torch.zeros(n, h, w, c).permute(0, 3, 1, 2)
    ceil = _rounds_up(x.shape, layer)
    below: Tensor = torch.ops.aten.avg_pool2d_backward(
        gradient * share, x, layer.kernel, layer.stride, layer.padding, ceil, True, 1
    )
    return below, True


def _rounds_up(size: tuple[int, ...], layer: MeanPool) -> bool:
    """Whether the pooled shape is torch's ceil_mode one. ``size`` is the operand's, (N, C, H, W)."""
    down = [(size[2 + i] + 2 * layer.padding[i] - layer.kernel[i]) // layer.stride[i] + 1 for i in (0, 1)]
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


def _through_interleave(layer: Interleave, network: Network, batch: int, gradient: Tensor) -> dict[int, Tensor]:
    """Each gradient to the element that lies there, by operand."""
    shapes = [network.shape_of(source) for source in layer.inputs]
    found: dict[int, Tensor] = {}
    for number, channels, of, to in windows(layer, shapes):
        h, w, c = shapes[number]
        whole = found.setdefault(layer.inputs[number], torch.zeros(batch, h, w, c).permute(0, 3, 1, 2))
        whole[:, channels, of[0], of[1]] += gradient[:, :, to[0], to[1]]
    return found


def _through_resample(layer: Resample, shape: tuple[int, ...], gradient: Tensor) -> Tensor:
    """Each gradient to the elements whose mean it is at, by their shares; added in one order, whatever the threads."""
    whole = gradient.permute(0, 2, 3, 1)
    for axis, places, weights in ((2, layer.columns, layer.column_weights), (1, layer.rows, layer.row_weights)):
        size, shares = list(whole.shape), weights / weights[0].sum()
        size[axis] = shape[axis]
        below = torch.zeros(size)
        form = [1, 1, 1, 1]
        form[axis] = len(places)
        for of, by in zip(places.T, shares.T, strict=True):
            part = whole if bool((by == 1).all()) else whole * torch.from_numpy(by.astype(np.float32)).reshape(form)
            below.index_add_(axis, torch.from_numpy(of.astype(np.int64)), part)
        whole = below
    return whole.permute(0, 3, 1, 2)


def _through_mul(a: Tensor, b: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients at both factors, each still to be scaled by the value of the other's step."""
    at_b = gradient * a
    return gradient * b, at_b if b.shape == a.shape else at_b.sum(dim=(2, 3), keepdim=True)


def _norm(gradients: Gradients) -> float:
    """Euclidean norm over all gradients, each tensor's in float32 and their sum in float64."""
    parts = torch._foreach_norm([gradient for pair in gradients.values() for gradient in pair])
    return float(torch.stack(parts).double().norm())
