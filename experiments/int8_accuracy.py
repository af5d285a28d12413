"""What int8 costs: accuracy of the lowered networks against their float originals, on images held out from calibration.

``python -m experiments.int8_accuracy --shared ../shared`` prints the table of docs/networks.md. The networks are those
whose weights are at hand; calibration takes the training images, the accuracy is of the test (validation) images.
``--jpeg 95 90 80 70`` prints instead what JPEG inputs cost (docs/wire.md, "Inputs"): the same networks on the pixels that
both sides of the link decode, at each quality.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from accelsim import zoo
from accelsim.datasets import IMAGENET_MEAN as MEAN
from accelsim.datasets import IMAGENET_STD as STD
from accelsim.engine import Engine
from accelsim.int8.network import Float32, Network, UInt8
from accelsim.lowering import lower, normalise
from services.codec.core import inputs

_BATCH = 20


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with weights at hand, and its data: names below ``weights/`` and ``data/``."""

    weights: str
    data: str
    test: str
    num_classes: int


TRAINED = {
    "resnet20": Trained("cifar10_resnet20.safetensors", "cifar10.npz", "test", 10),
    "resnet56": Trained("cifar10_resnet56.safetensors", "cifar10.npz", "test", 10),
    "squeezenet1_1": Trained("squeezenet1_1.safetensors", "imagenet224.npz", "val", 1000),
    "mobilenet_v2": Trained("mobilenet_v2_bnfolded.safetensors", "imagenet224.npz", "val", 1000),
}


def module_of(name: str, shared: Path) -> torch.nn.Module:
    """The float network with its trained weights, in evaluation mode."""
    module = zoo.build(name, TRAINED[name].num_classes)
    zoo.load_weights(module, shared / "weights" / TRAINED[name].weights)
    return module.eval()


def images_of(name: str, shared: Path, part: str) -> tuple[UInt8, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """(images uint8 (N, H, W, 3), labels (N,)) of ``part``: ``train`` or ``test``."""
    one = TRAINED[name]
    prefix = "train" if part == "train" else one.test
    with np.load(shared / "data" / one.data) as arrays:
        return arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"].astype(np.int64)


def lowered(name: str, shared: Path, count: int = 128) -> Network:
    """The int8 network, calibrated on the first ``count`` training images."""
    images, _ = images_of(name, shared, "train")
    return lower(module_of(name, shared), images[:count], MEAN, STD, name)


def top(logits: Float32, labels: np.ndarray[tuple[int], np.dtype[np.int64]], k: int) -> float:
    """Share, in per cent, of images whose label is among the ``k`` largest outputs; equal outputs count the first."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return float(100 * (order == labels[:, None]).any(axis=1).mean())


@torch.no_grad()
def float_logits(module: torch.nn.Module, images: UInt8) -> Float32:
    """(N, classes) outputs of the float network."""
    batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    return np.concatenate([module(normalise(b, MEAN, STD)).numpy() for b in batches]).astype(np.float32)


def int8_logits(network: Network, images: UInt8) -> Float32:
    """(N, classes) fault-free outputs of the int8 network, in steps."""
    engine = Engine(network)
    batches = [network.quantize_images(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    return np.concatenate([engine.run(b)[-1].reshape(len(b), -1) for b in batches]).astype(np.float32)


def jpeg_rows(name: str, shared: Path, calibration: int, qualities: Sequence[int]) -> Iterator[str]:
    """A row for lossless inputs and one for each JPEG quality, on the test images; the network is calibrated without loss."""
    module, network = module_of(name, shared), lowered(name, shared, calibration)
    images, labels = images_of(name, shared, "test")
    right = float_logits(module, images).argmax(1), int8_logits(network, images).argmax(1)
    for quality in (None, *qualities):
        body, seen = (inputs.encode(images), images) if quality is None else inputs.lossy(images, quality)
        logits = float_logits(module, seen), int8_logits(network, seen)
        cells = [f"{top(v, labels, 1):.1f} / {top(v, labels, 5):.1f}" for v in logits]
        same = [f"{100 * (v.argmax(1) == before).mean():.1f}" for v, before in zip(logits, right, strict=True)]
        kind = "lossless" if quality is None else f"JPEG {quality}"
        yield f"| {name} | {kind} | {100 * len(body) / images.nbytes:.1f} % | {cells[0]} | {cells[1]} | {' / '.join(same)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and weights/")
    parser.add_argument("--network", nargs="*", default=list(TRAINED), choices=list(TRAINED))
    parser.add_argument("--calibration", type=int, default=128, help="training images to calibrate on")
    parser.add_argument("--train", action="store_true", help="measure on training images behind those of calibration")
    parser.add_argument("--jpeg", nargs="+", type=int, metavar="Q", help="instead: accuracy on JPEG inputs of these qualities")
    args = parser.parse_args()
    if args.jpeg:
        print("| network | inputs | of raw | float top-1 / top-5 | int8 top-1 / top-5 | top-1 as on lossless, float / int8 |")
        print("|---|---|---|---|---|---|")
        for name in args.network:
            for row in jpeg_rows(name, args.shared, args.calibration, args.jpeg):
                print(row, flush=True)
        return
    print("| network | images | float top-1 / top-5 | int8 top-1 / top-5 | same top-1 | lowering, CPU time |")
    print("|---|---|---|---|---|---|")
    for name in args.network:
        module = module_of(name, args.shared)
        images, labels = images_of(name, args.shared, "train")
        start = time.process_time()
        network = lower(module, images[: args.calibration], MEAN, STD, name)
        seconds = time.process_time() - start
        if args.train:
            images, labels = images[args.calibration :][:1000], labels[args.calibration :][:1000]
        else:
            images, labels = images_of(name, args.shared, "test")
        exact, rough = float_logits(module, images), int8_logits(network, images)
        same = 100 * (exact.argmax(1) == rough.argmax(1)).mean()
        cells = [f"{top(v, labels, 1):.1f} / {top(v, labels, 5):.1f}" for v in (exact, rough)]
        print(f"| {name} | {len(images)} | {cells[0]} | {cells[1]} | {same:.1f} % | {seconds:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
