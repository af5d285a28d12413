"""The paper's five networks as int8 networks, for experiments: with real weights where there are any, else marked random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from accelsim import zoo
from accelsim.datasets import IMAGENET_MEAN, IMAGENET_STD
from accelsim.int8 import storage
from accelsim.int8.network import Network, UInt8
from accelsim.lowering import lower, normalise
from experiments.common.command import real


@dataclass(frozen=True, slots=True)
class Source:
    """A network of Table III: its name in the paper, in the zoo, and its weights' file where there is one."""

    paper: str
    zoo: str
    weights: str | None


FIVE: Final = (
    Source("ResNet18", "resnet18", None),
    Source("ResNet50", "resnet50", None),
    Source("MobileNet", "mobilenet_v2", "mobilenet_v2_bnfolded.safetensors"),
    Source("ShuffleNet", "shufflenet_v2_x0_5", None),
    Source("SqueezeNet", "squeezenet1_1", "squeezenet1_1.safetensors"),
)
"""ShuffleNet is the half-width one: Table III gives it 1.3 MB."""


def int8_network(name: str, weights: Path | None, images: UInt8) -> Network:
    """The zoo's network ``name``, calibrated on uint8 ``images`` (N, H, W, 3); weights None are random, with a fixed seed.

    A random network's batch norms take their statistics from the images, so that its activations are as spread as a
    trained network's. Raises what ``accelsim.zoo`` and ``accelsim.lowering`` raise.
    """
    if weights is not None:
        module = zoo.build(name)
        zoo.load_weights(module, weights)
    else:
        module = _random(name, images)
    return lower(module, images[:64], IMAGENET_MEAN, IMAGENET_STD, name=name)


def stored(source: Source, shared: Path, images: UInt8, cache: Path) -> Network:
    """``int8_network`` of a source, lowered once and then read from ``cache``; weights lie in ``shared``/weights.

    Raises InputError where they are missing.
    """
    path = cache / f"{source.zoo}.safetensors"
    if path.is_file():
        return storage.load(path)
    weights = None if source.weights is None else real(shared, f"weights/{source.weights}")
    network = int8_network(source.zoo, weights, images)
    cache.mkdir(parents=True, exist_ok=True)
    storage.save(network, path)
    return network


def float_weights(source: Source, shared: Path, images: UInt8, cache: Path) -> Path:
    """File of a source's float weights: the real ones in ``shared``/weights, or random ones, written to ``cache``."""
    if source.weights is not None:
        return real(shared, f"weights/{source.weights}")
    path = cache / f"{source.zoo}_random.safetensors"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        save_file(_random(source.zoo, images).state_dict(), path)
    return path


def photos(shared: Path) -> UInt8:
    """ImageNet photos, uint8 (N, 224, 224, 3). Raises InputError saying what to give."""
    with np.load(real(shared, "data/imagenet224.npz")) as data:
        images: UInt8 = data["train_images"]
    return images


def _random(name: str, images: UInt8) -> nn.Module:
    torch.manual_seed(0)
    module = zoo.build(name)
    _normalise_by(module, images[:32])
    return module


def _normalise_by(module: nn.Module, images: UInt8) -> None:
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average
    module.train()
    with torch.no_grad():
        module(normalise(images, IMAGENET_MEAN, IMAGENET_STD))
    module.eval()
