"""Any traceable ``torch.nn.Module`` to the int8 network of architecture.md, "Arithmetic".

The module runs once on a tensor that writes down what is done to it (``trace``), batch norm and ReLU are folded into the
layer in front (``fold``), the float graph is compared with the module, and calibration chooses the scales (``quantise``).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from accelsim.int8.network import Activations, Network, UInt8, Way
from accelsim.int8.storage import validate
from accelsim.lowering import graph
from accelsim.lowering.errors import LoweringError
from accelsim.lowering.fold import fold, within
from accelsim.lowering.graph import Graph
from accelsim.lowering.harm import output
from accelsim.lowering.pixels import black_and_white, normalise
from accelsim.lowering.quantise import Aim, choose, chosen, plain
from accelsim.lowering.trace import duplicate, trace

Holds = Literal["classes", "pixels"] | tuple[float, float] | None
"""What an output that is an image holds, see ``lower``."""

_SAME = 2e-3
"""Largest relative difference of the float graph from the module: more than float32 rounding, less than any mistake."""

_LOOKED_AT = 16
"""Images whose outputs say what black and white are"""

_AGAIN = 1e-5
"""Largest relative difference of the module from itself: the order of float32 sums."""


def lower(
    module: nn.Module,
    calibration_images_u8: UInt8,
    mean: Sequence[float],
    std: Sequence[float],
    name: str = "network",
    *,
    classifier: bool | None = False,
    activations: Activations = "auto",
    ber: float = 0.0,
    deconvolution: Way = "auto",
    image: Holds = None,
) -> Network:
    """The int8 network of a float module, calibrated on real images.

    ``calibration_images_u8`` is uint8 (N, H, W, C), 64 to 256 images are enough; the module sees
    ``(pixel / 255 - mean[c]) / std[c]`` as (N, C, H, W) and is lowered as it runs in evaluation mode.
    With ``classifier`` its output must be one number a class; None takes it for a classifier where it gives a vector.
    ``activations``: "auto" makes tensors that cannot be negative uint8, "signed" makes all int8, as the paper has them.
    ``ber`` is the bit error rate, 0 to 1, at inputs, weights and outputs of the accelerator that the network is made for:
    gains, scales and where a classifier's outputs lie are chosen so that flips do least harm. With "signed" it counts for
    nothing: that is the base of every comparison.
    ``image`` is what an output that is an image holds, of which a choice for faults makes use: (black, white) of pixels, beyond
    which nothing counts; "pixels" of 0..1 or -1..1, as ``black_and_white`` has it; "classes", of which in each pixel only the
    largest counts. None takes any value for as good as another.
    ``deconvolution`` is how transposed convolutions run as ordinary ones (``accelsim.lowering.deconv``): all ways give the same
    integers.
    Raises LoweringError where the module cannot be traced or an operator cannot be lowered.
    """
    (network,) = lower_ways(
        module,
        calibration_images_u8,
        mean,
        std,
        name,
        (deconvolution,),
        classifier=classifier,
        activations=activations,
        ber=ber,
        image=image,
    )
    return network


def lower_ways(
    module: nn.Module,
    calibration_images_u8: UInt8,
    mean: Sequence[float],
    std: Sequence[float],
    name: str,
    ways: Sequence[Way],
    *,
    classifier: bool | None = False,
    activations: Activations = "auto",
    ber: float = 0.0,
    image: Holds = None,
) -> list[Network]:
    """The int8 networks of ``lower``, one for each of ``ways``, for the cost of one: they differ in nothing else.

    Raises LoweringError as ``lower`` does.
    """
    images = calibration_images_u8
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise LoweringError(f"calibration images: expected uint8 (N, H, W, C), got {images.dtype} {images.shape}")
    if len(mean) != images.shape[3] or len(std) != images.shape[3] or min(std) <= 0:
        raise LoweringError(f"mean {mean} and std {std}: expected {images.shape[3]} values each, std above zero")
    if not 0 <= ber < 1:
        raise LoweringError(f"ber is {ber}; a bit error rate lies in 0..1")
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    traced = trace(module, shape)
    _no_shared_weights(traced)  # before batch norm, which may be shared too, is folded away
    lowered = fold(traced)
    if classifier is None:
        classifier = lowered.nodes[-1].shape[:2] == (1, 1)
    if classifier and lowered.nodes[-1].shape[:2] != (1, 1):
        h, w, c = lowered.nodes[-1].shape
        raise LoweringError(
            f"output: an image of {h}x{w} pixels and {c} channels, where a classifier gives one number a class; "
            "end forward() with pooling over the image, x.mean((2, 3)), or flatten and a linear layer"
        )
    _compare(duplicate(module), lowered, normalise(images[:4], mean, std))
    if activations != "signed" and ber and lowered.nodes[-1].shape[:2] != (1, 1) and image not in (None, "classes"):
        trial = normalise(images[:_LOOKED_AT], mean, std)
        within(lowered, *(image if isinstance(image, tuple) else black_and_white(float(output(lowered, trial).min()))))
    try:
        aim = plain(lowered) if activations == "signed" else Aim(ber=ber, classifier=classifier or image == "classes")
        choice = choose(lowered, images, mean, std, aim)
        networks = [chosen(choice, mean, std, name, way) for way in ways]
    except ValueError as error:
        raise LoweringError(str(error)) from error
    for network in networks:
        validate(network)
    return networks


def _no_shared_weights(traced: Graph) -> None:
    """Raises LoweringError where a weight or bias serves several layers: each would become one of its own in training."""
    users: dict[str, dict[str, None]] = defaultdict(dict)
    weighted = [node for node in traced.nodes if isinstance(node, graph.Conv | graph.Affine)]
    for one, other in itertools.combinations(weighted, 2):
        for mine, its in itertools.product(one.origins, other.origins):
            if mine.overlaps(its):
                users[mine.parameter].update({one.name: None, other.name: None})
    biases = {parameter: parameter.rpartition(".")[2].startswith("bias") for parameter in users}
    for parameter in sorted(users, key=lambda one: (biases[one], one)):
        names = users[parameter]
        kind = "bias" if biases[parameter] else "weight"
        raise LoweringError(
            f"{parameter} is the {kind} of {len(names)} layers ({', '.join(names)}): an int8 network has a {kind} a layer, "
            "so retraining would pull them apart; give each its own, e.g. a copy.deepcopy of the module for each call"
        )


@torch.no_grad()
def _compare(module: nn.Module, lowered: Graph, x: Tensor) -> None:
    try:
        want, again = module(x.clone()), module(x.clone())
    except Exception as error:  # the module's own code runs here
        raise LoweringError(f"{type(module).__name__}: forward() fails on calibration images: {error}") from error
    # Not to the bit: torch's transposed convolutions sum in one order today and in another tomorrow.
    first, second = torch.nan_to_num(want), torch.nan_to_num(again)
    if float((first - second).abs().max()) > _AGAIN * float(first.abs().max()):
        raise LoweringError(
            f"{type(module).__name__}: gives other outputs when it runs again on the same images; in evaluation mode it must "
            "not draw random numbers (dropout, stochastic depth) or remember earlier images"
        )
    *_, (_, got) = lowered.run(x)
    if want.dim() == 4:
        want = want.permute(0, 2, 3, 1)
        got = got.permute(0, 2, 3, 1)
    worst = float((want.reshape(-1) - got.reshape(-1)).abs().max())
    largest = float(want.abs().max())
    if not worst <= _SAME * max(largest, 1e-6):
        raise LoweringError(
            f"the lowered graph differs from the module by {worst} where values reach {largest}: "
            "does forward() depend on the values of its activations?"
        )
