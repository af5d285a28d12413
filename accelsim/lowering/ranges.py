"""Ranges: what calibration images say about each channel of each tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from accelsim.int8.network import INPUT
from accelsim.lowering.graph import Graph

BATCH = 16
"""Images that run together"""
_BINS = 256
_SAMPLES_AN_IMAGE = 8192


@dataclass(slots=True)
class Seen:
    """What calibration keeps of one tensor."""

    largest: Tensor
    """(C,) float64, largest magnitude of each channel"""
    mean: Tensor
    """(C,) float64"""
    counts: Tensor
    """(C, 256) float32, shares of a sample of a channel's magnitudes, in bins from 0 to its largest"""


def watch(graph: Graph, x: Tensor) -> dict[int, Seen]:
    """Runs the float graph on images (N, C, H, W) and keeps the ranges of every tensor.

    Raises ValueError, which names the node, where values are not finite.
    """
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
            # An odd step so that the sample walks through all columns.
            step = max(1, magnitude.numel() // (len(batch) * _SAMPLES_AN_IMAGE)) | 1
            samples.setdefault(index, []).append(magnitude.permute(1, 0, 2, 3).flatten(1)[:, ::step].clone())
            largest[index] = torch.maximum(largest.get(index, peak), peak)
            mean[index] = mean.get(index, torch.zeros_like(peak)) + y.mean((0, 2, 3)).double() * share
    return {index: Seen(peak, mean[index], _shares(torch.cat(samples.pop(index), 1), peak)) for index, peak in largest.items()}


def _shares(magnitudes: Tensor, largest: Tensor) -> Tensor:
    """Histograms (C, 256) of each channel's magnitudes (C, K), from 0 to its largest."""
    place = magnitudes.mul_((_BINS / largest.clamp(min=1e-30)).float()[:, None]).long().clamp_(max=_BINS - 1)
    counts = torch.zeros(len(place), _BINS)
    return counts.scatter_add_(1, place, torch.ones(1).expand(place.shape)) / place.shape[1]


def _with_input(graph: Graph, batch: Tensor) -> Iterator[tuple[int, Tensor]]:
    yield INPUT, batch
    yield from graph.run(batch)
