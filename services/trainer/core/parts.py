"""What several batches teach together, in one fixed order: the devices' of a step, or the chunks that one batch is cut into.

Sums of floats depend on their order, so a batch that is replayed by several processes is cut into as many chunks whoever takes
which, and what the chunks give is added up here, one after the other in float64, and rounded once. 1, 2 or 4 processes then end
with the same bits. Whole (``chunks`` 1), a batch has the sums of its convolutions, as it always had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from accelsim.int8.network import Activation, Network
from services.trainer.core import optimiser
from services.trainer.core.loss import Labels, Soft, Targets
from services.trainer.core.replay import Gradients, Recompute, Replay, replay

Replaying = Callable[[Network, Activation, Mapping[int, Activation], Labels, Recompute], Replay]
"""``replay.replay``, or whatever gives the same from the same arguments."""


def chunked(chunks: int) -> Replaying:
    """A replay of each batch in so many parts, or in as many as it has images, in this process."""
    if chunks == 1:
        return replay

    def in_parts(
        network: Network, x: Activation, outputs: Mapping[int, Activation], labels: Labels, recompute: Recompute
    ) -> Replay:
        return combined([(len(part[0]), replay(network, *part, recompute)) for part in cut(x, outputs, labels, chunks)])

    return in_parts


def cut(
    x: Activation, outputs: Mapping[int, Activation], labels: Labels, chunks: int
) -> list[tuple[Activation, dict[int, Activation], Labels]]:
    """A batch's inputs, outputs and labels in at most ``chunks`` parts of nearly one size, in order; none is empty."""
    chunks = min(chunks, len(x))
    edges = [len(x) * i // chunks for i in range(chunks + 1)]
    return [(x[a:b], {index: y[a:b] for index, y in outputs.items()}, _labels(labels, a, b)) for a, b in pairwise(edges)]


def combined(parts: Sequence[tuple[int, Replay]]) -> Replay:
    """The replay of all parts as if they were one batch; each comes with the number of its images.

    Loss and gradients are means over images: ``sum of images * gradient / sum of images``, added in float64 in the order of
    the parts. One part is given back as it is.
    """
    if len(parts) == 1:
        return parts[0][1]
    images = [count for count, _ in parts]
    gradients: Gradients = {}
    for index in parts[0][1].gradients:
        weight, bias = (_mean([(count, part.gradients[index][i]) for count, part in parts]) for i in (0, 1))
        gradients[index] = weight, bias
    return Replay(
        loss=sum(count * part.loss for count, part in parts) / sum(images),
        correct=sum(part.correct for _, part in parts),
        norm=optimiser.norm(gradients),
        gradients=gradients,
    )


def mean_of_arrays(parts: Sequence[tuple[int, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]) -> Tensor:
    """Float32 arrays' mean, each counted so often, as ``combined`` takes it of gradients."""
    return _mean([(count, torch.from_numpy(array)) for count, array in parts])


def _mean(parts: Sequence[tuple[int, Tensor]]) -> Tensor:
    total = torch.zeros(parts[0][1].shape, dtype=torch.float64)
    for count, part in parts:
        total += count * part.double()
    return (total / sum(count for count, _ in parts)).float()


def _labels(labels: Labels, a: int, b: int) -> Labels:
    if isinstance(labels, Soft):
        hard = None if labels.hard is None else labels.hard[a:b]
        return labels._replace(probabilities=labels.probabilities[a:b], hard=hard)
    if isinstance(labels, Targets):
        return labels._replace(images=labels.images[a:b])
    return labels[a:b]
