"""The learning rate and the clip that nobody has to set (docs/training.md, "The learning rate").

Polyak's step for a loss whose least value is 0, as soft labels' is, goes ``loss / |gradient|^2`` times the gradient. Loss and
squared gradient grow alike with the error rate, so their ratio is the network's own: it is taken from the means over all
updates so far, and one constant in front of it serves every network and rate. Steps have the faults' noise in them, and over n
steps that wanders as far as the root of n: longer runs take shorter steps.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

import msgspec

from services.trainer.core.task import Sgd

PART: Final = 0.25
"""Of Polyak's step, with a momentum of 0.9."""
ADAM: Final = 1e-3
"""Adam's rate: its steps are of the rate's own length, whatever the gradients are."""
LONG: Final = 200
"""Updates from which on steps get shorter."""
LONGEST: Final = 1.5
"""Gradients are clipped at so many times their root mean square."""


class Seen(msgspec.Struct, kw_only=True, frozen=True):
    """Sums over updates."""

    updates: int = 0
    loss: float = 0.0
    square: float = 0.0
    """Of the gradients' Euclidean norm."""

    def and_(self, loss: float, norm: float) -> Seen:
        """With one update more."""
        return Seen(updates=self.updates + 1, loss=self.loss + loss, square=self.square + norm**2)


def settled(sgd: Sgd, seen: Seen, updates: int) -> tuple[float, float]:
    """Highest learning rate and clip of a run of so many updates: as given, else from what was seen; 0 where there is nothing
    to learn."""
    rate, clip = sgd.rate, sgd.clip
    if rate is None and sgd.rule == "adam":
        rate = ADAM
    if rate is None:
        rate = PART * min(1.0, sqrt(LONG / updates)) * seen.loss / seen.square if seen.square else 0.0
    if clip is None:
        clip = LONGEST * sqrt(seen.square / seen.updates)
    return rate, clip
