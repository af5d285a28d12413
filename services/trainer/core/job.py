"""What a run is to do: ``job.json`` in its folder. Written once, by ``r2f``; the trainer takes everything from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from accelsim.faults import Rates
from services.scheme import CHAINED, Scheme
from services.trainer.core.labels import Source
from services.trainer.core.optimiser import Sgd

FILE = "job.json"
NETWORK = "network.safetensors"


class Job(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Settings of one retraining run. ``session`` names it on the bus."""

    session: str
    device: str
    rates: Rates
    scheme: Scheme = CHAINED
    iterations: int
    batch: int = 16
    sgd: Sgd = Sgd()
    labels: Source = "device"
    seed: int = 0
    """Of the order of the samples and of the device's faults in training."""
    evaluation_seeds: tuple[int, ...] = (1001, 1002, 1003, 1004, 1005)
    """Fault seeds of the evaluations before and after; never the training's."""
    evaluation_samples: int = 1000
    """At most this many of the held-out samples, from the first on."""
    evaluation_batch: int = 128
    checkpoint_every: int = 10
    patience_s: float = 20.0
    """Silence of the device after which it is asked again."""

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1 or self.evaluation_batch < 1 or self.checkpoint_every < 1:
            raise ValueError("job: iterations, batch, evaluation_batch and checkpoint_every must be 1 or more")
        if self.patience_s <= 0:
            raise ValueError(f"job: patience_s is {self.patience_s}; seconds above 0")
        if self.seed in self.evaluation_seeds or not self.evaluation_seeds:
            raise ValueError("job: evaluation_seeds must not be empty, nor hold the training's seed")


def write(folder: Path, job: Job) -> None:
    """Puts the job into a run's folder."""
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(job)) + b"\n")


def read(folder: Path) -> Job:
    """The job of a run's folder. Raises FileNotFoundError, or ValueError that names the file and the field."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Job)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error


def digest(job: Job) -> str:
    """By which a checkpoint knows its job. Everything counts but how often checkpoints are written, and patience."""
    same = msgspec.structs.replace(job, checkpoint_every=1, patience_s=1.0)
    return hashlib.sha256(msgspec.json.encode(same)).hexdigest()
