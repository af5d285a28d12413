"""What a run has found so far: ``result.json`` in its folder. Written after each evaluation, read by whoever reports."""

from __future__ import annotations

from pathlib import Path

import msgspec

from accelsim.files import write_whole
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.selection import Selection

FILE = "result.json"
PROGRESS = "progress.jsonl"
RETRAINED = "retrained.safetensors"
STOPPED = "stopped.txt"
"""Who had the run stopped and where, as long as nobody goes on with it."""


class Result(msgspec.Struct, kw_only=True):
    """Accuracies on held-out samples; None for what is not measured yet.

    ``clean`` ones are measured with all rates at zero and no layer protected: what the device then does wrong all the same
    stays in. A run that is done has the sha256 of its retrained network.
    """

    clean_plain: Evaluation | None = None
    """``plain``: of the network in the paper's arithmetic, not retrained (``job.PLAIN``)."""
    faulty_plain: Evaluation | None = None
    clean_before: Evaluation | None = None
    faulty_before: Evaluation | None = None
    clean_after: Evaluation | None = None
    faulty_after: Evaluation | None = None
    iterations: int | None = None
    """Of the whole run, once the device has said how many samples it has."""
    selection: Selection | None = None
    """How it was decided what is deployed."""
    model_sha256: str = ""


def read(folder: Path) -> Result:
    """The result in a run's folder, empty before its first evaluation. Raises ValueError naming the file if it is damaged."""
    path = folder / FILE
    if not path.exists():
        return Result()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error


def stopped(folder: Path) -> str:
    """What ``STOPPED`` says; empty where the run was not stopped."""
    path = folder / STOPPED
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def write(folder: Path, result: Result) -> None:
    """Puts the result into a run's folder, whole or not at all."""
    write_whole(folder / FILE, msgspec.json.encode(result))
