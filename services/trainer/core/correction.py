"""Bias correction: what faults do to the mean of a channel is taken back by its bias, in closed form, from one pass.

A fault adds to a channel's mean in two ways: an error born in the layer, which is rarely as often up as down, and errors
from before, which a ReLU turns into a shift. The server has the device's output of every layer and can compute each layer on
exactly the input that the device fed it, so it knows the errors born in it. It runs the batch again, layer by layer, with these
errors in place and the layers before already corrected, and moves each bias by what then separates the channel's mean from that
of the fault-free run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Activation, Conv, Int8, Layer, Network
from accelsim.int8.parameters import Parameters, quantize
from accelsim.int8.walk import walk

Float64 = npt.NDArray[np.float64]


def correct(
    network: Network,
    parameters: Parameters,
    engine: Engine,
    reference: Engine,
    x: Int8,
    device: Mapping[int, Activation],
    gain: float,
) -> Network:
    """The network with corrected biases; those in ``parameters`` change in place.

    ``engine`` runs the network that the device ran, ``reference`` the one whose fault-free means are to be had back. ``x`` is
    the input (N, H, W, C), ``device`` every activation of the device by index (``replay.activations``). ``gain`` is the part of
    a shift that is taken back, 1 / k for the k-th batch of several: then the shifts' mean over all batches is.
    """
    wanted: dict[int, Activation] = dict(enumerate(reference.run(x)))
    values: dict[int, Activation] = {INPUT: x}
    corrected = network
    for index, layer, operands in walk(network, values):
        if not isinstance(layer, Conv):
            values[index] = engine.fault_free(index, operands)
            continue
        born = device[index].astype(np.int16) - engine.fault_free(index, [device[layer.inputs[0]]])
        had = _struck(engine.fault_free(index, operands), born)
        bias = parameters[index][1]
        bias += (gain * layer.scale * _shift(wanted[index], had) / _moved(layer, had)).astype(np.float32)
        corrected = _with_bias(corrected, index, bias)
        values[index] = _struck(Engine(corrected, engine.path).fault_free(index, operands), born)
    return quantize(network, parameters)


def _struck(y: Activation, born: npt.NDArray[np.int16]) -> Activation:
    """An output with the device's errors on top, within the stored type."""
    limits = np.iinfo(y.dtype)
    return np.asarray(np.clip(born + y, limits.min, limits.max), y.dtype)


def _shift(wanted: Activation, had: Activation) -> Float64:
    """By how many steps each channel (C,) has to go up. What the images do not agree on is left: it is chance.

    The estimate's error is the images' standard deviation over their number's root; a shift is taken by the share
    ``shift^2 / (shift^2 + error^2)`` of it, the best linear estimate of one that is as likely up as down.
    """
    apart = wanted.mean(axis=(1, 2), dtype=np.float64) - had.mean(axis=(1, 2), dtype=np.float64)
    shift = apart.mean(axis=0)
    error = apart.var(axis=0) / len(apart)
    return np.asarray(shift * shift**2 / np.maximum(shift**2 + error, np.finfo(np.float64).tiny), np.float64)


def _moved(layer: Conv, y: Activation) -> Float64:
    """Share of each channel's outputs (C,) that a bias moves, for those at a clamp stay there; a quarter at least, for where
    few move, the mean is not straight in the bias for long."""
    free = (y > layer.low) & (y < layer.high)
    return np.asarray(np.maximum(free.mean(axis=(0, 1, 2)), 0.25), np.float64)


def _with_bias(network: Network, index: int, bias: npt.NDArray[np.float32]) -> Network:
    """The network with one layer's bias (O,), in real units, rounded to its steps."""
    layers: list[Layer] = list(network.layers)
    layer = layers[index]
    assert isinstance(layer, Conv)
    step = np.float64(network.scale_of(layer.inputs[0])) * layer.weight_scale.astype(np.float64)
    layers[index] = replace(layer, bias=np.clip(np.rint(bias / step), -(2**30), 2**30).astype(np.int32))
    return replace(network, layers=tuple(layers))
