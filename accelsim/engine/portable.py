"""MAC layers by torch's float convolution, on any CPU or GPU (architecture.md, "Arithmetic").

A sum of integers is exact in floating point, in any order, while no partial sum passes the format's integers: 2^24 in
float32, 2^53 in float64. The bound is taken from the weights themselves and the largest activation: 128 of an int8, 255 of
a uint8.
"""

from __future__ import annotations

import numpy as np

from accelsim.engine import kernels, reference
from accelsim.faults import Flips
from accelsim.int8.network import Activation, Conv, Int32

CHUNK_BYTES = 4 * 1024 * 1024
"""Float accumulators are held for as many images at a time as fit this, so that they stay in cache."""


def replica(layer: Conv, x: Activation, flips: Flips, device: str = "cpu") -> Activation:
    """Output (N, H, W, O) of one execution of a MAC layer on x (N, H, W, C), int8 or uint8; no flips: the fault-free one."""
    import torch  # 200 MB that a device on another path does not have to have

    weight = reference.flip(layer.weight, flips.weight) if len(flips.weight) else layer.weight
    if len(flips.input):
        x = reference.flip(x, flips.input)
    largest = 128 if x.dtype == np.int8 else 255
    bound = largest * np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)) + np.abs(layer.bias.astype(np.int64))
    # On a GPU, or with reduced precision allowed, a float32 convolution may be a Winograd, TF32 or bfloat16 one, whose
    # intermediates are no integers.
    full = device == "cpu" and torch.get_float32_matmul_precision() == "highest"
    exact = full and int(bound.max(initial=0)) < 2**24
    dtype = torch.float32 if exact else torch.float64
    w = torch.tensor(weight, device=device).to(dtype)
    bias = torch.tensor(layer.bias, device=device).to(dtype)
    scale = torch.tensor(layer.multiplier, device=device)
    y: Activation = np.empty((len(x), *layer.shape), layer.dtype)
    high = layer.high.astype(np.float32)
    step = max(1, CHUNK_BYTES // (8 * max(1, y[:1].size)))
    for first in range(0, len(x), step):
        part = y[first : first + step]
        images = torch.tensor(x[first : first + step], device=device).permute(0, 3, 1, 2).to(dtype)
        if layer.dilation != (1, 1):
            images = images.contiguous()  # torch 2.13's oneDNN can crash on channels-last ones
        with torch.no_grad(), torch.autocast(device, enabled=False):
            acc = torch.nn.functional.conv2d(
                images, w, bias, layer.stride, layer.padding, layer.dilation, layer.groups
            ).permute(0, 2, 3, 1)
        at, end = first * y[0].size * 32, (first + len(part)) * y[0].size * 32
        struck = flips.accumulator[np.searchsorted(flips.accumulator, at) : np.searchsorted(flips.accumulator, end)]
        if len(struck):
            integers: Int32 = acc.to(torch.int32).contiguous().cpu().numpy()
            bits = (np.int64(1) << (struck & 31)).astype(np.uint32)
            np.bitwise_xor.at(integers.reshape(-1).view(np.uint32), (struck - at) >> 5, bits)
            acc = torch.from_numpy(integers).to(device)
        acc = acc.to(torch.float32)
        if device == "cpu":
            values = acc.contiguous().numpy().reshape(-1, y.shape[3])
            kernels.round_floats(values, layer.multiplier, layer.low, high, part.view(np.int8).reshape(-1, y.shape[3]))
        else:
            limits = torch.tensor(layer.low, device=device), torch.tensor(high, device=device)
            kind = torch.int8 if layer.signed else torch.uint8
            part[...] = (acc * scale).round_().clamp_(*limits).to(kind).cpu().numpy()
    return reference.flip(y, flips.output) if len(flips.output) else y
