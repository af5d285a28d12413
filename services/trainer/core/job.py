"""What a run is to do: ``job.json`` in its folder. Written once, by ``r2f``; the trainer takes everything from it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Final, Literal

import msgspec

from accelsim.files import write_whole
from accelsim.int8.network import Network
from services import scheme
from services.known import known_faults
from services.scheme import Known
from services.trainer.core.task import Task

FILE = "job.json"
NETWORK = "network.safetensors"
PLAIN = "plain.safetensors"
"""The same network in the paper's arithmetic, in runs that measure what it would have come to."""


OWN: Final = {"labels": "train_labels.npy", "targets": "train_targets.npy"}
"""The server's own labels (N,), or target images or masks, of the device's training samples."""
TARGETS: Final = "test_targets.npy"
"""Target images uint8 (N, H, W, C), or masks (N, H, W), of the held-out samples, where evaluations are against them."""
Against = Literal["labels", "targets", "fault-free outputs"]
"""What evaluations are held against: the device's labels, the server's copy of the targets (``TARGETS``), or what the network
from before retraining gives without faults."""


class Job(Task, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One retraining run. ``session`` names it on the bus."""

    session: str
    device: str
    evaluation_seeds: tuple[int, ...] = (1001, 1002, 1003, 1004, 1005)
    """Fault seeds of the evaluations before and after; never the training's."""
    evaluation_batch: int = 128
    patience_s: float = 20.0
    """Silence of the device after which it is asked again."""
    against: Against = "labels"
    known: Known = b""
    """The device's permanent faults, as far as the server is to know them (``accelsim.faults.chip.packed``)."""
    data: str = ""
    """Digest of the data that the run was prepared with (``accelsim.datasets.Dataset.digest``): the device's must be the
    same, for else they number classes differently. Not looked at where it is empty, or the device gives none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "batch", "evaluation_samples", "evaluation_batch", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"job: {name} is {value}; it must be 1 or more")
        if self.recipe.hard and self.labels not in ("auto", "teacher-soft"):
            raise ValueError(f"job: hard labels can be mixed into teacher-soft alone, not into {self.labels}")
        if not 0 < self.patience_s < math.inf:
            raise ValueError(f"job: patience_s is {self.patience_s}; seconds above 0")
        if self.scheme.protected and self.scheme.way.reference == "run":
            raise ValueError(f"job: with codec {self.scheme.codec} no layers are protected in training; take chained or direct")
        known_faults(self.known, "job: known")
        if self.seed in self.evaluation_seeds or not self.evaluation_seeds:
            raise ValueError("job: evaluation_seeds must not be empty, nor hold the training's seed")


def write(folder: Path, job: Job) -> None:
    """Puts the job into a run's folder."""
    write_whole(folder / FILE, msgspec.json.format(msgspec.json.encode(job)) + b"\n")


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


def check(job: Job, network: Network) -> None:
    """Raises ValueError where the job asks for what this network does not have."""
    try:
        scheme.check(job.scheme, network)
    except ValueError as error:
        raise ValueError(f"job: {error}") from None
