"""The ways of retraining that figures compare, each as settings of ``r2f retrain``, and at which error rates."""

from __future__ import annotations

from typing import Final

from experiments.common.cells import Recipe
from experiments.common.figure import recipe
from experiments.common.trained import TRAINED

BASE: Final[Recipe] = recipe(activations="signed")
"""As it is, in signed arithmetic: the paper's base."""
UNTRAINED: Final[Recipe] = recipe(activations="auto")
"""In our arithmetic, not retrained."""
PLAIN: Final[Recipe] = recipe(codec="direct", recipe="paper")
"""The paper's plain recipe, from the device's own outputs."""
PLAIN_RATES: Final = {
    "digits_cnn": 3e-4,
    "resnet20": 3e-4,
    "resnet56": 3e-4,
    "squeezenet1_1": 3e-4,
    "mobilenet_v2": 3e-4,
}
"""The learning rate of that recipe: where ``python -m experiments.paper_rate`` has its best on selection images.

Measured for the digits (3e-6 to 1e-2), SqueezeNet (the same) and ResNet-20 (up to 3e-4, still rising); the other two take
those of their siblings.
"""
OURS: Final[Recipe] = recipe(codec="direct")
"""What ``r2f retrain`` does by default. Its chained increments end with the same model, bit for bit, but take longer."""
PHOTOS: Final = 400
SAMPLES: Final = {False: 4000, True: 20_000}
"""Small images that a figure's epoch has, at most: by whether it is of the paper's size."""


def papers(network: str, theta: float | None = None) -> Recipe:
    """The paper's retraining of a network in signed arithmetic, at its own best rate: direct (DRM), or from approximate outputs
    at a threshold of similarity (APRM)."""
    approximate = () if theta is None else recipe(codec="golden", theta=theta)
    return BASE + PLAIN + recipe(lr=PLAIN_RATES[network]) + approximate


def scaled(network: str, ber: float) -> float:
    """A bit error rate of the paper's as it is for ImageNet's networks, ten times as much for the small ones.

    CIFAR-10's and the digits' stand that many more errors, and the paper has none of them.
    """
    return ber if _is_imagenet(network) else float(f"{10 * ber:g}")


def length(network: str, *, full: bool, epochs: float = 1, batch: int = 16) -> Recipe:
    """How long the paper's recipe takes: an epoch, or so many, of ImageNet's photos at hand, or of ``SAMPLES`` small images."""
    samples = PHOTOS if _is_imagenet(network) else SAMPLES[full]
    return recipe(iterations=max(1, round(epochs * samples / batch)))


def ours(network: str, *, full: bool) -> Recipe:
    """What ``r2f retrain`` does by default; of small images it sees two times ``SAMPLES`` where the figure is to be small."""
    return OURS if full or _is_imagenet(network) else OURS + length(network, full=False, epochs=2)


def _is_imagenet(network: str) -> bool:
    return network in TRAINED and TRAINED[network].num_classes == 1000
