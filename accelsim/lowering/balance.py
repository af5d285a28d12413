"""Balance: gains and scales of least expected harm, all at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accelsim.int8.network import INPUT
from accelsim.lowering.equalise import Joined
from accelsim.lowering.harm import Harm, harm
from accelsim.lowering.ranges import Seen

_ROUNDS = 100
_RATE = 0.15
"""Octaves that a first round moves a gain or a scale by"""
_LARGEST_GAIN = 8.0
"""Octaves"""


@dataclass(frozen=True, slots=True)
class Balanced:
    gains: dict[int, Tensor]
    """(C,) float64 of each tensor"""
    scales: dict[int, float]
    """of each tensor, float32 values"""


def balance(
    model: Harm, widest: dict[int, float], joined: Joined, tied: dict[int, int], care: float, *, gains: bool, image: bool
) -> Balanced:
    """Gains and scales of a float graph, by descent (Adam) from unit gains and the widest scales; no randomness.

    ``widest`` are the scales of the graph without gains that clip nothing. ``gains`` False leaves all at 1; without
    ``image`` the input's scale stays.
    """
    groups = sorted(set(tied.values()))
    scale_of = torch.cat([torch.full((len(joined.of[i]),), groups.index(group)) for i, group in tied.items()])
    gain_of = torch.cat([joined.of[i] for i in tied])
    start = torch.tensor([max(widest[i] for i, group in tied.items() if group == own) for own in groups]).log2()
    moved, count = torch.zeros(len(groups) + len(joined.fixed)), len(groups)
    free = torch.cat([torch.tensor([image or group != INPUT for group in groups]), ~joined.fixed & gains])
    speed, spread = torch.zeros_like(moved), torch.zeros_like(moved)
    for i in range(_ROUNDS):
        steps = (start + moved[:count])[scale_of] - moved[count:][gain_of]
        total, slope = harm(model, steps, care)
        by_scale = torch.zeros(count).index_add_(0, scale_of, slope)
        by_gain = torch.zeros(len(moved) - count).index_add_(0, gain_of, slope)
        # Shares of the harm, since Adam's constants know no units.
        each = torch.where(free, torch.cat([by_scale, -by_gain]), 0.0) / max(total, 1e-30)
        speed += 0.1 * (each - speed)
        spread += 0.01 * (each.square() - spread)
        mean, size = speed / (1 - 0.9 ** (i + 1)), (spread / (1 - 0.99 ** (i + 1))).sqrt()
        moved -= _RATE * (1 - i / _ROUNDS) * mean / (size + 1e-9)
        moved[count:].clamp_(-_LARGEST_GAIN, _LARGEST_GAIN)
    scales = [float(np.float32(v)) for v in (start + moved[:count]).exp2().tolist()]
    chosen = dict(zip(groups, scales, strict=True))
    if not image:
        chosen[INPUT] = widest[INPUT]
    return Balanced(
        {index: moved[count:].double().exp2()[of] for index, of in joined.of.items()},
        {index: chosen[group] for index, group in tied.items()},
    )


def widest(seen: dict[int, Seen], levels: dict[int, int], input_scale: float) -> dict[int, float]:
    """The scale of each tensor at which nothing that was seen is clipped."""
    scales = {index: float(s.largest.max()) / levels[index] or 1.0 for index, s in seen.items()}
    return scales | {INPUT: input_scale}
