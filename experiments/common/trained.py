"""The networks whose trained weights are at hand, their data, and their accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from accelsim import zoo
from accelsim.datasets import IMAGENET_MEAN, IMAGENET_STD, Int64
from accelsim.engine import Engine
from accelsim.int8.network import Activation, Float32, Network, UInt8
from accelsim.lowering import lower, normalise
from experiments.common.command import real
from services.trainer.core import evaluation

_BATCH: Final = 20


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with weights at hand, and its data: names below ``weights/`` and ``data/``."""

    weights: str
    data: str
    test: str
    num_classes: int


TRAINED: Final = {
    "resnet20": Trained("cifar10_resnet20.safetensors", "cifar10.npz", "test", 10),
    "resnet56": Trained("cifar10_resnet56.safetensors", "cifar10.npz", "test", 10),
    "squeezenet1_1": Trained("squeezenet1_1.safetensors", "imagenet224.npz", "val", 1000),
    "mobilenet_v2": Trained("mobilenet_v2_bnfolded.safetensors", "imagenet224.npz", "val", 1000),
}


def module_of(name: str, shared: Path) -> torch.nn.Module:
    """The float network with its trained weights, in evaluation mode. Raises InputError where the file is missing."""
    module = zoo.build(name, TRAINED[name].num_classes)
    zoo.load_weights(module, real(shared, f"weights/{TRAINED[name].weights}"))
    return module.eval()


def images_of(name: str, shared: Path, part: str) -> tuple[UInt8, Int64]:
    """(images uint8 (N, H, W, 3), labels (N,)) of ``part``: ``train`` or ``test``. Raises InputError as ``module_of``."""
    one = TRAINED[name]
    prefix = "train" if part == "train" else one.test
    with np.load(real(shared, f"data/{one.data}")) as arrays:
        return arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"].astype(np.int64)


def lowered(name: str, shared: Path, count: int = 128) -> Network:
    """The int8 network, calibrated on the first ``count`` training images."""
    images, _ = images_of(name, shared, "train")
    return lower(module_of(name, shared), images[:count], IMAGENET_MEAN, IMAGENET_STD, name)


def top(outputs: Activation | Float32, labels: Int64) -> tuple[float, float]:
    """Shares, in per cent, of images whose label is the largest output (N, ..., C), and one of the five largest."""
    right = evaluation.count(outputs, labels)
    return 100 * right.top1 / right.samples, 100 * (right.samples if right.top5 is None else right.top5) / right.samples


@torch.no_grad()
def float_logits(module: torch.nn.Module, images: UInt8) -> Float32:
    """(N, classes) outputs of the float network."""
    batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    return np.concatenate([module(normalise(b, IMAGENET_MEAN, IMAGENET_STD)).numpy() for b in batches]).astype(np.float32)


def int8_logits(network: Network, images: UInt8) -> Activation:
    """(N, classes) fault-free outputs of the int8 network, in steps."""
    engine = Engine(network)
    batches = [network.quantize_images(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    return np.concatenate([engine.run(b)[-1].reshape(len(b), -1) for b in batches])
