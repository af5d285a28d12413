"""Operators that make images larger: transposed convolutions and pixel shuffle (``resampling`` has those that interpolate)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accelsim.lowering import graph, pooling
from accelsim.lowering.traced import Traced

if TYPE_CHECKING:
    from accelsim.lowering.builder import Builder


def conv_transpose2d(
    b: Builder, input: Traced, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Traced:  # fmt: skip
    """``torch.nn.functional.conv_transpose2d``."""
    if isinstance(weight, Traced) or isinstance(bias, Traced):
        raise b.refuse("a layer whose weight is computed from an activation", "a weight that is a parameter works")
    if weight.dim() != 4 or input.origin.dim() != 4:
        raise b.refuse(
            f"a transposed convolution of {weight.dim() - 2} dimensions",
            "nn.ConvTranspose2d works, of one dimension with a height of 1: x[:, :, None], a kernel (1, K)",
        )
    if pooling.pair(dilation) != (1, 1):
        raise b.refuse(f"a transposed convolution with dilation {dilation}", "dilation=1 works")
    operand = b.image(input)
    h, w, c = b.built.shape_of(operand)
    if c != weight.shape[0]:
        raise b.refuse(f"a transposed convolution of {c} channels", f"its weight wants {weight.shape[0]}")
    strides, pads, extra = pooling.pair(stride), pooling.pair(padding), pooling.pair(output_padding)
    size = [(v - 1) * s - 2 * p + k + e for v, s, p, k, e in zip((h, w), strides, pads, weight.shape[2:], extra, strict=True)]
    origins = b.origins(weight) if bias is None else b.origins(weight) | b.origins(bias)
    out = weight.shape[1] * groups
    taps = weight.detach().double().reshape(groups, c // groups, *weight.shape[1:]).transpose(1, 2)
    node = graph.Deconv(
        name=b.label, inputs=[operand], shape=(size[0], size[1], out), origins=origins, groups=int(groups),
        weight=taps.reshape(out, c // groups, *weight.shape[2:]).contiguous(),
        bias=torch.zeros(out, dtype=torch.float64) if bias is None else bias.detach().double(),
        stride=strides, padding=pads,
    )  # fmt: skip
    return b.add(node, input)


def pixel_shuffle(b: Builder, input: Traced, upscale_factor: int) -> Traced:
    """``torch.nn.functional.pixel_shuffle``."""
    operand = b.image(input)
    h, w, c = b.built.shape_of(operand)
    s, out = int(upscale_factor), c // int(upscale_factor) ** 2
    if input.origin.dim() != 4 or s < 1 or out * s * s != c:
        raise b.refuse(f"pixel_shuffle by {s} of {c} channels", "channels that are a multiple of its square work")
    order = torch.arange(c).reshape(out, s * s).T.reshape(-1).tolist()
    moved = b.add(graph.Channels(name=f"{b.label}.order", inputs=[operand], shape=(h, w, c), order=order), input)
    blocks = tuple((place * out, place // s, place % s) for place in range(s * s))
    shape = (h * s, w * s, out)
    return b.add(graph.Interleave(name=b.label, inputs=[b.image(moved)], shape=shape, step=(s, s), blocks=blocks), input)
