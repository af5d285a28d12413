"""What a run is to do, as plain data: the part of a job that its user sets. Imports nothing heavy, for ``r2f --help``."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from accelsim.faults import Rates
from services.scheme import CHAINED, Scheme

Source = Literal["device", "server", "teacher", "teacher-soft"]
"""Where labels come from. ``teacher`` takes the fault-free network's answer as the label, ``teacher-soft`` all its class
probabilities."""
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class Sgd(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Settings of the optimiser. ``clip`` bounds the gradients' Euclidean norm. All are finite, as JSON knows no others."""

    rate: Annotated[float, Meta(gt=0)] = 1e-3
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    clip: Annotated[float, Meta(gt=0)] = 5.0

    def __post_init__(self) -> None:
        in_range = self.rate > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0 and self.clip > 0
        if not in_range or not all(map(math.isfinite, msgspec.structs.astuple(self))):
            raise ValueError(f"optimiser settings out of range: {self}")


class Task(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the user sets of a retraining run, and the trainer needs to know."""

    rates: Rates = Rates(input=1e-4, weight=1e-4, output=1e-4)
    scheme: Scheme = CHAINED
    iterations: Count = 100
    batch: Count = 16
    sgd: Sgd = Sgd()
    labels: Source = "device"
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    """Of the order of the samples and of the device's faults in training."""
    evaluation_samples: Count = 1000
    """At most this many of the held-out samples, evenly over all of them."""
    checkpoint_every: Count = 10
