"""Single outputs of a MAC layer."""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from accelsim.engine.kernels.memory import number, pointer, rint


@njit(nogil=True, cache=True)
def elements(layer, x, images, positions, y):  # type: ignore[no-untyped-def]
    """Fault-free outputs of a MAC layer at flat NHWC output positions, by direct dot products.

    layer: a ``Stored``. x: address of bytes (images, H, W, C). y: bytes as int8, one a position.
    """
    window, zero, low, high, weight, bias, multiplier = layer
    h, w, c, oh, ow, o, r, s, sy, sx, py, px, dy, dx = window
    i = weight.shape[1]
    source = carray(pointer(x), images * h * w * c, np.int8)
    for f in range(len(positions)):
        pixel = positions[f] // o
        channel = positions[f] - pixel * o
        group = channel // (o // (c // i))
        oy, ox, image = (pixel // ow) % oh, pixel % ow, pixel // (ow * oh)
        total = np.int64(bias[channel])
        for ry in range(r):
            iy = oy * sy - py + ry * dy
            if iy < 0 or iy >= h:
                continue
            for rx in range(s):
                ix = ox * sx - px + rx * dx
                if ix < 0 or ix >= w:
                    continue
                at = ((image * h + iy) * w + ix) * c + group * i
                for k in range(i):
                    total += np.int64(number(source[at + k], zero)) * np.int64(weight[channel, k, ry, rx])
        value = rint(np.float32(np.int32(total)) * multiplier[channel])
        y[f] = np.int8(np.int32(min(max(value, np.float32(low)), np.float32(high[channel]))))
