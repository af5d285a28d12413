"""Whether images may be mirrored or moved in training: what the network itself answers alike may be.

A mirrored photo shows the same thing, a mirrored digit another one or none. The fault-free network knows: on the images that it
was calibrated on, it must give three of four changed ones the answer that it gives the originals. Where outputs are images
they are shown as they are, unless the recipe says otherwise.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.engine import Engine
from accelsim.int8.network import Network, UInt8
from services.scheme import View
from services.trainer.core.job import Job
from services.trainer.core.objective import is_image
from services.views import seen

ALIKE: Final = 0.75
"""Share of the changed images that must get the same answer."""
PART: Final = 16
"""Images are moved by up to one in so many of their columns."""


def decided(job: Job, network: Network, images: UInt8, path: str = "auto") -> Job:
    """The job with what its recipe leaves open decided, on images (N, H, W, C) that it was calibrated on."""
    recipe = job.recipe
    if is_image(network):
        # An output that is an image is mirrored and moved with its input; whether that is still right nobody can ask it.
        recipe = msgspec.structs.replace(recipe, flip=bool(recipe.flip), shift=recipe.shift or 0)
        return msgspec.structs.replace(job, recipe=recipe)
    if recipe.flip is not None and recipe.shift is not None:
        return job
    engine = Engine(network, path)
    answers = _answers(engine, images)

    def alike(changed: UInt8) -> bool:
        return float(np.mean(_answers(engine, changed) == answers)) >= ALIKE

    flip, shift = recipe.flip, recipe.shift
    if flip is None:
        flip = alike(np.ascontiguousarray(images[:, :, ::-1]))
    if shift is None:
        most = images.shape[2] // PART
        shift = most if most and alike(seen(images, View(seed=0, shift=most))) else 0
    return msgspec.structs.replace(job, recipe=msgspec.structs.replace(recipe, flip=flip, shift=shift))


def _answers(engine: Engine, images: UInt8) -> npt.NDArray[np.int64]:
    outputs = engine.run(engine.network.quantize_images(images))[-1]
    return np.asarray(outputs.reshape(len(images), -1).argmax(axis=1), np.int64)
