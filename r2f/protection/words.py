"""The words of ``r2f protect``; imports nothing heavy, for ``r2f --help``."""

from __future__ import annotations

from typing import Final, Literal

Search = Literal["estimated", "algorithm1"]
"""By estimates that a few evaluations check, or by Algorithm 1 of the paper."""
Grain = Literal["layers", "sites"]
"""Whole layers in TMR, or also their tensors by voters at the accelerator's ports."""
Cost = Literal["cycles", "macs"]
"""What protection is counted in: modelled cycles, or multiplications."""
SHARES: Final = (1.0, 0.5, 0.25)
"""Of the error rates that networks are quantised for, to find the one that protection suits: it takes errors away."""
SETTINGS: Final = (
    "network", "weights", "modules", "data", "image-size", "mean", "std", "classes", "ber", "ber-input", "ber-weight",
    "ber-output", "ber-accumulator", "vote", "array", "seed",
)  # fmt: skip
"""Those of a run that a search for its protection takes, too."""
