"""What a run is to do, as plain data: the part of a job that its user sets. Imports nothing heavy, for ``r2f --help``."""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from accelsim.faults import Rates
from services.metric import Metric
from services.scheme import CHAINED, Scheme

Source = Literal["auto", "device", "server", "teacher", "teacher-soft"]
"""Where labels come from. ``teacher`` takes the fault-free network's answer as the label, ``teacher-soft`` all its class
probabilities. ``auto`` is the server's copy of the targets where it has one, else ``teacher-soft``
(``services.trainer.core.objective``)."""
Criterion = Literal["cross-entropy", "l1", "l2"]
"""What training makes small: of classes, an image's or each pixel's; or the distance of pixels."""
Rule = Literal["sgd", "adam"]
Method = Literal["retrain", "correct"]
"""What is done to the network: ``correct`` shifts biases by what faults do to a channel's mean and is done with that."""
Schedule = Literal["cosine", "constant"]
Sharing = Literal["own", "common"]
"""Of several devices: a model for each, or one model that learns from all."""
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Whole = Annotated[int, Meta(ge=0, le=1_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0, le=100)]
"""A learning rate. Networks are trained at 0.1, with large batches and gradients held short at some 30; beyond 100 the first
steps destroy the weights, and a run would say so late."""
Momentum = Annotated[float, Meta(ge=0, le=0.999)]
"""Share of the velocity that an update keeps: 0.999 is a mean over a thousand updates; beyond it a step outlives most runs."""
Decay = Annotated[float, Meta(ge=0, le=1)]
"""Of weights, beside the gradient: 5e-4 is usual; at 1 the rate alone says what share of a weight goes with each step."""
Clip = Annotated[float, Meta(gt=0, le=1e6)]
"""A norm of all gradients: 1 to 10 is usual. A million clips nothing that a network recovers from: it stands for no clip."""


def said(bounds: Meta) -> str:
    """A type's bounds in words, as ``> 0 and <= 100``; empty where it has none."""
    ends = ((">", bounds.gt), (">=", bounds.ge), ("<", bounds.lt), ("<=", bounds.le))
    return " and ".join(f"{sign} {end if isinstance(end, int) else f'{end:.10g}'}" for sign, end in ends if end is not None)


class Sgd(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Settings of the optimiser, all finite, as JSON knows no others. What is None is chosen in the run, from the network and
    its faults (``services.trainer.core.rate``)."""

    rate: Rate | None = None
    """The highest learning rate."""
    momentum: Momentum = 0.9
    weight_decay: Decay = 0.0
    clip: Clip | None = None
    """Largest Euclidean norm of the gradients."""
    rule: Rule | None = None
    """Descent with momentum, or Adam. None is Adam where outputs are images (``services.trainer.core.objective``), else
    descent."""

    def __post_init__(self) -> None:
        # msgspec looks at the bounds of what it reads, and not at what a program builds. NaN is in no range.
        for name, kind in (("rate", Rate), ("momentum", Momentum), ("weight_decay", Decay), ("clip", Clip)):
            value, bounds = getattr(self, name), get_args(kind)[1]
            low = 0 if bounds.ge is None else bounds.ge
            if value is not None and not (low <= value <= bounds.le and (bounds.gt is None or value > bounds.gt)):
                raise ValueError(f"optimiser: {name} {value:g}: expected a number {said(bounds)}")


class Recipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a network is retrained. ``PAPER`` is what the paper does; the defaults are ours (docs/training.md, "The recipe")."""

    epochs: Count = 5
    """Where the job has no ``iterations``: how often every training sample is seen."""
    schedule: Schedule = "cosine"
    """Of the learning rate, behind the warm-up."""
    warmup: Share = 0.1
    """Share of the iterations in which the learning rate rises from nothing."""
    average: Annotated[float, Meta(ge=0, lt=1)] = 0.97
    """Of the running average of the weights, which is deployed: what is kept of it an update; 0 takes the last weights."""
    accumulate: Count = 1
    """Batches whose gradients make one update."""
    chunks: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Parts that a batch is replayed in, so that several processes can share it (``services.trainer.core.parts``). The model
    depends on their number, and not on who replays them."""
    temperature: Annotated[float, Meta(ge=0.01, le=100)] = 2.0
    """Of soft labels: teacher's and device's outputs are divided by it. At 0.01 labels are as hard as the teacher's own
    answer, at 100 all classes are alike."""
    hard: Share = 0.0
    """With soft labels: share of the loss that is against the device's own labels."""
    clean: Share = 0.0
    """Share of the gradient that is the fault-free network's, which the server computes itself (RandBET)."""
    drawn: Share | None = None
    """Share of the gradient that is from a faulty pass of the server's own, whose flips it draws
    (``services.trainer.core.drawn``). None is all of it where outputs are images (``services.trainer.core.objective``), else
    nothing."""
    corrections: Whole = 4
    """Batches by which biases are corrected before anything is learnt."""
    rate_factor: Annotated[float, Meta(ge=0, le=100)] = 1.0
    """Error rates in training over those of the device."""
    curriculum: Share = 0.0
    """Share of the iterations in which the error rates rise from nothing."""
    flip: bool | None = None
    """Mirror half of the images left to right, on the device. None asks the network: ``services.trainer.core.viewing``."""
    shift: Annotated[int, Meta(ge=0, le=64)] | None = None
    """Move images by up to so many pixels each way, on the device. None likewise."""
    selection: Whole = 256
    """Training samples, at most a quarter of all, that nothing is learnt from: on these it is decided what is deployed. 0
    deploys what training ends with."""
    checks: Annotated[int, Meta(ge=1, le=100)] = 2
    """How often in training what was learnt is tried on the selection samples, evenly; the last time at the end."""


PAPER: Final = Recipe(
    schedule="constant",
    warmup=0.0,
    average=0.0,
    temperature=1.0,
    drawn=0.0,
    corrections=0,
    flip=False,
    shift=0,
    selection=0,
    checks=1,
)
"""Plain gradient descent on the device's labels (section IV of the paper)."""


class Task(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the user sets of a retraining run, and the trainer needs to know."""

    rates: Rates = Rates(input=1e-4, weight=1e-4, output=1e-4)
    scheme: Scheme = CHAINED
    method: Method = "retrain"
    iterations: Count | None = None
    """Batches in all, those that correct biases too; None takes the recipe's epochs beside the corrections."""
    batch: Count = 16
    sgd: Sgd = Sgd()
    recipe: Recipe = Recipe()
    labels: Source = "auto"
    metric: Metric | None = None
    """None is chosen by the network's output and the data (``services.trainer.core.objective``), as are the next two."""
    loss: Criterion | None = None
    output_range: tuple[float, float] | None = None
    """What black and white are in outputs that are pixels."""
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    """Of the order of the samples and of the device's faults in training."""
    evaluation_samples: Count = 1000
    """At most this many of the held-out samples, evenly over all of them."""
    checkpoint_every: Count = 10

    def __post_init__(self) -> None:
        if self.output_range is not None:
            low, high = self.output_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"output-range {low:g},{high:g}: expected two finite numbers, black's and white's, the first smaller"
                )
