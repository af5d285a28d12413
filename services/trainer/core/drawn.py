"""A faulty pass that the server runs itself, under flips that it draws, so that it knows each of them.

Of the device's own pass the server knows what came out of each layer, not which bits of a weight or of an input had flipped
when they were read. A gradient taken at the stored ones does not see two things: that large inputs make a flipped weight worse,
and large weights a flipped input. Here it is taken at what was multiplied. The flips are simulated: as many as the job's error
rates say, soft errors, whatever the device's own faults are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from accelsim.engine import Engine
from accelsim.engine.reference import flip
from accelsim.faults import Flips, Key, Rates, draw
from accelsim.int8.network import INPUT, Activation, Conv, Int8
from accelsim.int8.walk import walk
from services.scheme import Scheme
from services.trainer.core.replay import Inside


def faulty_pass(
    engine: Engine, x: Activation, rates: Rates, scheme: Scheme, seed: int, name: str, iteration: int
) -> tuple[Mapping[int, Activation], Inside]:
    """Outputs (N, H, W, C) of each MAC layer for input integers (N, H, W, C), and what happened inside them.

    Layers that the scheme protects have no flips, as votes take nearly all of them; its ports have what their votes leave. The
    draws are a function of the last three arguments.
    """
    network = engine.network
    voted = {port.layer: tuple(p.site for p in scheme.ports if p.layer == port.layer) for port in scheme.ports}
    values: dict[int, Activation] = {INPUT: x}
    outputs: dict[int, Activation] = {}
    weights: dict[int, Int8] = {}
    read: dict[int, Activation] = {}
    computed: dict[int, Activation] = {}
    for index, layer, operands in walk(network, values):
        if not isinstance(layer, Conv):
            values[index] = engine.fault_free(index, operands)
            continue
        taken = operands[0]
        flips = draw(
            Rates() if index in scheme.protected else rates,
            Key(seed, name, iteration, index, 0),
            inputs=taken.size,
            weights=layer.weight.size,
            outputs=len(taken) * math.prod(layer.shape),
            voted=voted.get(index, ()),
        )
        inner = Flips(input=flips.input, weight=flips.weight, accumulator=flips.accumulator)
        computed[index] = engine.replicas(index, taken, [inner])[0]
        weights[index] = flip(layer.weight, flips.weight).view(np.int8)
        read[index] = flip(taken, flips.input)
        values[index] = outputs[index] = flip(computed[index], flips.output)
    return outputs, Inside(weights, read, computed)
