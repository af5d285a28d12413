"""Ranges: what calibration images say about each tensor, and the scale that loses least of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accelsim.int8.network import INPUT
from accelsim.lowering.graph import MOVES, Graph

BATCH = 16
"""Images that run together"""
_BINS = 4096
_SAMPLES_AN_IMAGE = 8192
_CLIPS = torch.linspace(0.10, 1.0, 91, dtype=torch.float64)
"""Candidates for the clipping range of an activation, as shares of the largest value seen."""
NORMS = (1.5, 2.0, 3.0)
"""Exponents of the error that the range search minimises; below the square, rare large values count less. Which is
best depends on the network (docs/networks.md), so each is tried on some of the images."""


@dataclass(slots=True)
class Seen:
    """What calibration keeps of one tensor."""

    largest: Tensor
    """(C,) float64, largest magnitude of each channel"""
    mean: Tensor
    """(C,) float64"""
    counts: Tensor
    """(4096,) float64, histogram of a sample of the magnitudes, from 0 to the largest"""


def watch(graph: Graph, x: Tensor) -> dict[int, Seen]:
    """Runs the float graph on images (N, C, H, W) and keeps the ranges of every tensor."""
    largest: dict[int, Tensor] = {}
    mean: dict[int, Tensor] = {}
    samples: dict[int, list[Tensor]] = {}
    for batch in torch.split(x, BATCH):
        share = len(batch) / len(x)
        for index, y in _with_input(graph, batch):
            magnitude = y.abs()
            peak = magnitude.amax((0, 2, 3)).double()
            if not bool(torch.isfinite(peak).all()):
                where = "the input" if index == INPUT else graph.nodes[index].name
                raise ValueError(f"{where}: the float module gives {float(peak.max())} on the calibration images")
            # An odd step so that the sample walks through all columns and channels.
            step = max(1, magnitude.numel() // (len(batch) * _SAMPLES_AN_IMAGE)) | 1
            samples.setdefault(index, []).append(magnitude.flatten()[::step].clone())
            largest[index] = torch.maximum(largest.get(index, peak), peak)
            mean[index] = mean.get(index, torch.zeros_like(peak)) + y.mean((0, 2, 3)).double() * share
    return {
        index: Seen(peak, mean[index], torch.histc(torch.cat(samples[index]), _BINS, 0, float(peak.max())).double())
        for index, peak in largest.items()
    }


def _with_input(graph: Graph, batch: Tensor) -> Iterator[tuple[int, Tensor]]:
    yield INPUT, batch
    yield from graph.run(batch)


def activation_scales(graph: Graph, seen: dict[int, Seen], norm: float | None, headroom: float = 1.0) -> dict[int, float]:
    """The scale of each node that does not just hand on its operand's; ``norm`` None clips nothing.

    ``headroom`` widens every range but where the node's own bound (ReLU6) ends it.
    """
    last = len(graph.nodes) - 1
    scales = {}
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, MOVES):
            scale = scale_of(seen[index], norm, clip=index != last)
            scales[index] = scale if headroom == 1 else float(np.float32(max(scale, min(scale * headroom, node.high / 127))))
    return scales


def scale_of(seen: Seen, norm: float | None, clip: bool) -> float:
    """The scale of least error; the network's output is not clipped, since its largest values decide."""
    largest = float(seen.largest.max())
    if largest == 0:
        return 1.0
    if not clip or norm is None:
        return float(np.float32(largest / 127))
    centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (largest / _BINS)
    step = _CLIPS[:, None] * (largest / 127)
    error = (centres - step * (centres / step).round().clamp(max=127)).abs().pow(norm) @ seen.counts
    return float(np.float32(_CLIPS[int(error.argmin())] * largest / 127))
