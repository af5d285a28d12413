"""What it costs a network to lose a weight, from its own gradients, before any chip is seen.

The saliency of a weight is ``1/2 F w^2``: what its loss adds to the cross-entropy, to the first order that is not 0 at a
trained network, with the Fisher information F = E[g^2] in place of the curvature (LeCun et al., "Optimal brain damage", NeurIPS
1989, eq. 5; Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019, eq. 8, has g^2 w^2). The labels
are drawn from the network's own answers, so none are needed, and gradients do not vanish where it is always right.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from accelsim.engine import Engine
from accelsim.int8.network import Float32, Network, UInt8
from services.trainer.core.objective import probabilities
from services.trainer.core.replay import replay

IMAGES: Final = 256
BATCH: Final = 8
"""Images whose gradients are taken together: fewer are nearer to E[g^2], and take longer."""


def saliency(network: Network, images: UInt8, seed: int = 0) -> dict[int, Float32]:
    """What the loss rises by, in nats an image, where each weight (O, I/groups, R, S) of each MAC layer is lost.

    ``images`` (N, H, W, C) are run fault-free on this network. The mean of a batch's g is squared and multiplied by the
    batch's size, which is E[g^2] where the images' gradients are independent, as they are with drawn labels.
    """
    engine = Engine(network)
    generator = np.random.Generator(np.random.PCG64([seed, len(images)]))
    found = {index: np.zeros(layer.weight.shape, np.float64) for index, layer in network.convs()}
    for begin in range(0, len(images), BATCH):
        x = network.quantize_images(images[begin : begin + BATCH])
        outputs = engine.run(x)
        labels = _drawn(probabilities(network, outputs[-1], 1.0), generator)
        replayed = replay(network, x, dict(enumerate(outputs)), labels, engine.fault_free)
        for index, (gradient, _) in replayed.gradients.items():
            found[index] += len(x) * np.square(gradient.numpy().astype(np.float64)) * (len(x) / len(images))
    return {
        index: (0.5 * found[index] * np.square(layer.weight * layer.weight_scale[:, None, None, None])).astype(np.float32)
        for index, layer in network.convs()
    }


def _drawn(given: Float32, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """A class (N,) for each row of probabilities (N, classes)."""
    reached = given.cumsum(axis=1) >= generator.random((len(given), 1)) * given.sum(axis=1, keepdims=True)
    return np.asarray(reached.argmax(axis=1), np.int64)
