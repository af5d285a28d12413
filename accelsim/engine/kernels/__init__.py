"""Compiled loops: MAC layers with their faults, a tile of output pixels at a time, and the other layers.

``convolution`` and ``depthwise`` need AVX-512 VNNI (``accelsim.engine.vnni``); the rest runs anywhere. Everything is exact
integer arithmetic except the one float32 multiply of each requantisation, so no fast-math (architecture.md, "Arithmetic").
All kernels release the GIL; the engine gives each thread a range of pixels, images or elements.
"""

from accelsim.engine.kernels.convolution import conv
from accelsim.engine.kernels.depthwise import depthwise
from accelsim.engine.kernels.elements import elements
from accelsim.engine.kernels.flips import locate, patch_weights, weight_deltas, weight_quads
from accelsim.engine.kernels.others import add, look_up, max_pool, mean_pool, move_channels, multiply, round_floats, scale
from accelsim.engine.kernels.structs import Execution, Packed, Quads, Stored, Struck, Taps, Window

__all__ = [
    "Execution",
    "Packed",
    "Quads",
    "Stored",
    "Struck",
    "Taps",
    "Window",
    "add",
    "conv",
    "depthwise",
    "elements",
    "locate",
    "look_up",
    "max_pool",
    "mean_pool",
    "move_channels",
    "multiply",
    "patch_weights",
    "round_floats",
    "scale",
    "weight_deltas",
    "weight_quads",
]
