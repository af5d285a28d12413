"""Balance: gains and scales of least expected harm, all at once."""

from __future__ import annotations

import math
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
    expected: float
    """The harm of it"""


def balance(
    model: Harm, seen: dict[int, Seen], joined: Joined, tied: dict[int, int], input_scale: float, care: float, gains: bool
) -> Balanced:
    """Gains and scales of a float graph, by descent from unit gains and the widest ranges; no randomness.

    ``seen`` is what calibration saw of the graph without gains. ``gains`` False leaves all at 1.
    """
    groups = sorted(set(tied.values()))
    place = {group: i for i, group in enumerate(groups)}
    widest = torch.zeros(len(groups))
    for index, group in tied.items():
        step = float(seen[index].largest.max()) / model.levels[index]
        widest[place[group]] = max(float(widest[place[group]]), step)
    start = torch.where(widest > 0, widest, 1.0).log2()
    start[place[INPUT]] = math.log2(input_scale)
    movable = torch.ones(len(groups))
    movable[place[INPUT]] = 0
    free = (~joined.fixed).float() if gains else torch.zeros(len(joined.fixed))

    scale, gain = torch.zeros(len(groups), requires_grad=True), torch.zeros(len(free), requires_grad=True)

    def steps() -> dict[int, Tensor]:
        log_scale, log_gain = start + scale * movable, gain * free
        return {index: log_scale[place[group]] - log_gain[joined.of[index]] for index, group in tied.items()}

    with torch.enable_grad():
        unit = harm(model, steps(), care).detach().clamp(min=1e-30)
        optimiser = torch.optim.Adam([scale, gain], lr=_RATE, betas=(0.9, 0.99), eps=1e-12)
        for i in range(_ROUNDS):
            for parameters in optimiser.param_groups:
                parameters["lr"] = _RATE * (1 - i / _ROUNDS)
            optimiser.zero_grad()
            (harm(model, steps(), care) / unit).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                gain.clamp_(-_LARGEST_GAIN, _LARGEST_GAIN)
    with torch.no_grad():
        expected = float(harm(model, steps(), care))
        log_scale, log_gain = start + scale * movable, (gain * free).double()
    chosen = [float(np.float32(2.0**v)) for v in log_scale.tolist()]
    chosen[place[INPUT]] = input_scale
    return Balanced(
        {index: log_gain[of].exp2() for index, of in joined.of.items()},
        {index: chosen[place[group]] for index, group in tied.items()},
        expected,
    )
