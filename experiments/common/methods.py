"""The ways of retraining that figures compare, each as settings of ``r2f retrain``, and at which error rates."""

from __future__ import annotations

from typing import Final

from experiments.common.cells import Recipe
from experiments.common.figure import recipe
from experiments.common.trained import TRAINED

SMALL: Final = ("resnet20", "squeezenet1_1")
"""One network a data set: what figures show unless they are told ``--full``."""
BASE: Final[Recipe] = ()
"""As it is, in signed arithmetic: the paper's base."""
DRM: Final[Recipe] = recipe(codec="direct", labels="device")
"""The paper's direct retraining: signed arithmetic, its plain recipe."""
OURS: Final[Recipe] = recipe(codec="direct", labels="teacher-soft")
"""What ``r2f retrain`` does by default. Its chained increments end with the same model, bit for bit, but take longer."""

LOW, HIGH, HIGHEST = 1e-5, 5e-5, 1e-4
"""Of the paper's bit error rates."""


def aprm(theta: float) -> Recipe:
    """The paper's retraining from approximate outputs, at a threshold of similarity."""
    return recipe(codec="golden", labels="device", theta=theta)


def scaled(network: str, ber: float) -> float:
    """A bit error rate of the paper's as it is for ImageNet's networks, ten times as much for the small ones.

    CIFAR-10's and the digits' stand that many more errors, and the paper has none of them.
    """
    return ber if network in TRAINED and TRAINED[network].num_classes == 1000 else float(f"{10 * ber:g}")


def length(network: str, *, full: bool) -> Recipe:
    """How long it is trained: an epoch of ImageNet's photos; of the small images an epoch too, or a part of it."""
    if network in TRAINED and TRAINED[network].num_classes == 1000:
        return recipe(iterations=25)
    return recipe(iterations=1250 if full else 250)
