"""The networks of the paper's Table III, of the demo, and generative ones, as float modules, and where weights come from."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

from torch import nn

from accelsim.named import users
from accelsim.zoo.checkpoint import WeightsError, read
from accelsim.zoo.digits import digits_cnn
from accelsim.zoo.generative import GENERATIVE
from accelsim.zoo.images import crops_sr2x, shapes_unet
from accelsim.zoo.mobilenet import mobilenet_v2
from accelsim.zoo.resnet import resnet18, resnet20, resnet50, resnet56
from accelsim.zoo.shufflenet import shufflenet_v2_x0_5, shufflenet_v2_x1_0
from accelsim.zoo.squeezenet import squeezenet1_1
from accelsim.zoo.weights import classes_of, fill, load_weights

__all__ = ["NETWORKS", "TRAINED_HERE", "WeightsError", "build", "load", "load_weights"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (
        digits_cnn,
        resnet20,
        resnet56,
        resnet18,
        resnet50,
        mobilenet_v2,
        shufflenet_v2_x0_5,
        shufflenet_v2_x1_0,
        squeezenet1_1,
        shapes_unet,
        crops_sr2x,
    )
} | GENERATIVE
"""Builders by name; each whose output is of classes takes ``num_classes``."""

TRAINED_HERE: Final[dict[str, str]] = {"digits_cnn": "digits", "shapes_unet": "shapes", "crops_sr2x": "crops2x"}
"""Networks that are trained from nothing where no weights are given, and the data set that each is meant for."""


def build(network: str, classes: int | None = None) -> nn.Module:
    """A float module by its name in ``NETWORKS``, or a user's own as ``package.module:function``.

    The user's function is looked for from the current folder too, and is given ``classes`` as ``num_classes`` if it takes
    it. ``classes`` None is the builder's own default. Weights are torch's random ones: see ``load``.
    Raises ValueError where there is no such network, or its function fails or returns anything but a module.
    """
    builder = _builder(network)
    try:
        module = builder(num_classes=classes) if _takes_classes(builder) and classes is not None else builder()
    except Exception as error:  # the user's own code runs here
        raise ValueError(f"network {network!r}: it fails to build: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        what = f"the class {module.__name__}, not one of it" if isinstance(module, type) else type(module).__name__
        raise ValueError(f"network {network!r}: returned {what}, expected a torch.nn.Module and nothing beside it")
    return module


def load(
    network: str,
    weights: str | os.PathLike[str] | None,
    *,
    classes: int | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> nn.Module:
    """The float module of ``build`` in evaluation mode, filled with the checkpoint file ``weights``.

    A zoo network has as many classes as its checkpoint unless ``classes`` says how many there must be; a user's own has
    ``classes``, or its builder's default. ``weights`` None leaves torch's random ones. ``say`` is told what of the file was
    left out, as ``load_weights`` does.
    Raises ValueError as ``build`` does, WeightsError as ``load_weights`` does, OSError if the file cannot be read.
    """
    if weights is None:
        return build(network, classes).eval()
    path = Path(weights)
    builder = _builder(network)
    tensors = read(path)
    if network in NETWORKS and _takes_classes(builder):
        found = classes_of(builder, tensors, path)
        if found is not None and classes is not None and found != classes:
            raise WeightsError(
                f"{path} is of a {network} with {found} classes, where {classes} are needed; train its last layer anew"
            )
        classes = found or classes
    module = build(network, classes)
    fill(module, tensors, path, say)
    return module.eval()


def _takes_classes(builder: Callable[..., nn.Module]) -> bool:
    return "num_classes" in inspect.signature(builder).parameters


def _builder(network: str) -> Callable[..., nn.Module]:
    if ":" in network:
        return users("network", network)
    if network not in NETWORKS:
        raise ValueError(f"network {network!r}: expected one of {', '.join(NETWORKS)}, or package.module:function")
    return NETWORKS[network]
