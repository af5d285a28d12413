"""The networks of the paper's Table III and of the demo, as float modules, and where their weights come from."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable

from torch import nn

from accelsim.zoo.digits import digits_cnn
from accelsim.zoo.mobilenet import mobilenet_v2
from accelsim.zoo.resnet import resnet18, resnet20, resnet50, resnet56
from accelsim.zoo.shufflenet import shufflenet_v2_x0_5, shufflenet_v2_x1_0
from accelsim.zoo.squeezenet import squeezenet1_1
from accelsim.zoo.weights import WeightsError, load_weights

__all__ = ["NETWORKS", "WeightsError", "build", "load_weights"]

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
    )
}
"""Builders by name; each takes ``num_classes``."""


def build(spec: str, num_classes: int | None = None) -> nn.Module:
    """A float module by its name in ``NETWORKS``, or a user's own as ``package.module:function``.

    The user's function is looked for from the current folder too, and is given ``num_classes`` if it takes it.
    ``num_classes`` None is the builder's own default. Weights are torch's random ones: see ``load_weights``.
    Raises ValueError if there is no such network, TypeError if the function returns anything but a module.
    """
    if ":" not in spec:
        if spec not in NETWORKS:
            raise ValueError(f"network {spec!r}: expected one of {', '.join(NETWORKS)}, or package.module:function")
        builder = NETWORKS[spec]
    else:
        builder = _users(spec)
    takes = "num_classes" in inspect.signature(builder).parameters
    module = builder(num_classes=num_classes) if takes and num_classes is not None else builder()
    if not isinstance(module, nn.Module):
        raise TypeError(f"network {spec!r}: returned {type(module).__name__}, expected a torch.nn.Module")
    return module


def _users(spec: str) -> Callable[..., nn.Module]:
    path, _, name = spec.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(path), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"network {spec!r}: {error}; expected package.module:function") from error
    if not callable(function):
        raise ValueError(f"network {spec!r}: {name} is not a function")
    checked: Callable[..., nn.Module] = function
    return checked
