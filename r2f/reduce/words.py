"""The words of ``r2f resilience``; imports nothing heavy, for ``r2f --help``."""

from __future__ import annotations

from typing import Final

SETTINGS: Final = (
    "network", "weights", "modules", "data", "image-size", "mean", "std", "classes", "activations", "ber", "ber-input",
    "ber-weight", "ber-output", "ber-accumulator", "array", "batch", "accumulate", "lr", "warmup", "momentum", "weight-decay",
    "clip", "average", "labels", "temperature", "hard-labels", "clean-gradient", "corrections", "flip", "shift", "seed",
    "eval-seeds", "eval-samples",
)  # fmt: skip
"""Those of a run that retraining chips takes, too."""
RATES: Final = "1%,2.5%,5%,7.5%,10%"
AMOUNTS: Final = "0,4,16,32,64,96,128,160"
