"""How close int8 stays to float for whole public networks that nobody here tuned for (docs/networks.md).

``python -m experiments.int8_closeness --shared ../shared`` prints the table. There are no trained weights of these at hand:
weights are random, batch norm's statistics come from photographs. Such networks are harsher than trained ones: nothing has
taught them to answer alike on images that are alike, so each rounding grows on its way to the output. The other columns say
how fragile a network is, everything else being float there: "input only" and "weights only" are rounded alone;
"activations only" has all of them in 8 bits from 0 to the largest value that each *channel* took in calibration, which is finer
than a device with one scale a tensor can be.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from accelsim.datasets import IMAGENET_MEAN as MEAN
from accelsim.datasets import IMAGENET_STD as STD
from accelsim.datasets import spread
from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Network, UInt8
from accelsim.lowering import fold, lower, normalise, trace
from accelsim.lowering.graph import apply, clamp
from accelsim.lowering.pixels import input_scale
from accelsim.lowering.ranges import watch
from accelsim.lowering.signs import levels, unsigned
from experiments.common import command
from experiments.common.public import PUBLIC

_BATCH = 16


def with_statistics(module: nn.Module, images: UInt8) -> nn.Module:
    """The module in evaluation mode, its batch norms' statistics those of images (N, H, W, 3), dropout aside."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # a plain average
    module.train()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    with torch.no_grad():
        module(normalise(images, MEAN, STD))
    return module.eval()


def closeness(exact: Tensor, rough: Tensor) -> float:
    """Mean cosine, over images, of how outputs (N, classes) differ from the mean image's output."""
    return float(torch.cosine_similarity(exact - exact.mean(0), rough - rough.mean(0), dim=1).mean())


@torch.no_grad()
def outputs(module: nn.Module, x: Tensor) -> Tensor:
    """Float outputs (N, classes) for normalised images (N, 3, H, W)."""
    return torch.cat([module(batch) for batch in torch.split(x, _BATCH)]).double()


def int8_outputs(network: Network, images: UInt8) -> Tensor:
    """Fault-free outputs (N, classes) of the int8 network for uint8 images (N, H, W, 3)."""
    engine = Engine(network)
    steps = [
        engine.run(network.quantize_images(images[i : i + _BATCH]))[-1].reshape(-1, network.layers[-1].shape[2])
        for i in range(0, len(images), _BATCH)
    ]
    return torch.from_numpy(np.concatenate(steps)).double() * network.layers[-1].scale


@torch.no_grad()
def weights_rounded(module: nn.Module) -> nn.Module:
    """The module, changed in place: each output channel's weights in 255 even steps."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            flat = part.weight.flatten(1)
            step = (flat.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
            part.weight.copy_(((flat / step).round() * step).reshape(part.weight.shape))
    return module


@torch.no_grad()
def activations_rounded(module: nn.Module, calibration: UInt8, x: Tensor) -> Tensor:
    """Float outputs (N, classes) where each channel of each tensor behind the input has steps of its own."""
    graph = fold(trace(module, calibration.shape[1:]))
    seen, tensors = watch(graph, normalise(calibration, MEAN, STD)), levels(graph, unsigned(graph))
    steps = {i: (s.largest / tensors[i]).clamp(min=1e-12).float()[:, None, None] for i, s in seen.items() if i != INPUT}
    found = []
    for batch in torch.split(x, _BATCH):
        values = {INPUT: batch}
        for i, node in enumerate(graph.nodes):
            y = clamp(node, apply(node, [values[j] for j in node.inputs]))
            values[i] = (y / steps[i]).round().clamp(-tensors[i], tensors[i]) * steps[i]
        found.append(values[len(graph.nodes) - 1].flatten(1))
    return torch.cat(found).double()


def rows(names: list[str], calibration: UInt8, images: UInt8) -> Iterator[str]:
    """A row of the table for each network."""
    for name in names:
        torch.manual_seed(0)
        module = with_statistics(PUBLIC[name](), calibration[:32])
        start = time.process_time()
        network = lower(module, calibration, MEAN, STD, name)
        seconds = time.process_time() - start
        x = normalise(images, MEAN, STD)
        exact = outputs(module, x)
        scale = input_scale(MEAN, STD)
        cells = [
            closeness(exact, int8_outputs(network, images)),
            closeness(exact, outputs(module, (x / scale).round() * scale)),
            closeness(exact, activations_rounded(module, calibration, x)),
            closeness(exact, outputs(weights_rounded(module), x)),  # changes it
        ]
        yield f"| {name} | {' | '.join(f'{c:.3f}' for c in cells)} | {seconds:.0f} s |"


def main() -> None:
    """Prints the table."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_networks(parser, list(PUBLIC))
    parser.add_argument("--images", type=command.positive, default=48, help="validation images to measure on [%(default)s]")
    given = parser.parse_args()
    with np.load(command.real(given.shared, "data/imagenet224.npz")) as arrays:
        calibration, images = arrays["train_images"][:64], arrays["val_images"]
    images = images[spread(given.images, len(images))]
    print("| network | int8 | input only | activations only | weights only | lowering, CPU time |\n|---|---|---|---|---|---|")
    for row in rows(given.network, calibration, images):
        print(row, flush=True)


if __name__ == "__main__":
    command.run(main)
