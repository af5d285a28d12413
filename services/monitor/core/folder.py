"""A run's folder as the same state that watching it would have come to."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from services.monitor.core.curve import Curve, point
from services.monitor.core.known import Run, Score, count, setting, tell_layers
from services.monitor.core.watched import Watched
from services.trainer.core import fleet as fleets
from services.trainer.core import job, ledger, result
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.job import Job
from services.trainer.core.result import Result

EVALUATIONS = (
    ("plain", False, "clean_plain"), ("plain", True, "faulty_plain"), ("before", False, "clean_before"),
    ("before", True, "faulty_before"), ("after", False, "clean_after"), ("after", True, "faulty_after"),
)  # fmt: skip
"""Phase, whether there were faults, and the field of ``result.json``."""


class Found(NamedTuple):
    """One device's part of a run."""

    device: str
    run: Run
    curve: Curve
    settled: int
    """The last iteration that is in the totals, -1 for none."""


def load(watched: Watched, folder: Path) -> list[str]:
    """Puts a run's folder into what is watched; the names of its devices. Raises ValueError that names the file."""
    found = read(folder)
    for one in found:
        watched.add(one.device, one.run, one.curve, one.settled)
    return [one.device for one in found]


def read(folder: Path) -> list[Found]:
    """A run's devices. Raises ValueError that names the file that is missing or damaged."""
    try:
        fleet = fleets.read(folder)
        if fleet is None:
            return [_one(folder, job.read(folder), folder)]
        if fleet.sharing == "own":
            return [_one(folder / name, job.read(folder / name), folder / name) for name in fleet.devices]
        todo = job.read(folder)
        parts = sorted(path.parent for path in folder.glob(f"*/{result.FILE}"))
        return [_one(part, msgspec.structs.replace(todo, device=part.name), folder) for part in parts]
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no run is there: {Path(error.filename).name} is missing") from None


def _one(folder: Path, todo: Job, networks: Path) -> Found:
    found = result.read(folder)
    path = folder / result.PROGRESS
    try:
        rows = ledger.read(path)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error
    model_bytes = (networks / job.NETWORK).stat().st_size
    seen = max(file.stat().st_mtime for file in (folder / job.FILE, path, folder / result.FILE, networks) if file.exists())
    run = Run(todo.session, seen, from_folder=True, batch=todo.batch)
    curve = Curve()
    for row in rows:
        count(run.totals, row, model_bytes)
        tell_layers(run, row)
        curve.add(point(row, model_bytes))
    run.setting = setting("training", todo.rates, todo.scheme, todo.seed, todo.known)
    run.iterations = found.iterations or todo.iterations or 0
    run.done = rows[-1].iteration + 1 if rows else 0
    run.loss = rows[-1].loss if rows else None
    run.phase, run.step, run.steps = _phase(found, run)
    metric = run.metric = todo.metric or "top1"
    run.scores = [
        Score(phase, faults, list(one.of(metric))) for phase, faults, name in EVALUATIONS if (one := _evaluation(found, name))
    ]
    run.stopped = result.stopped(folder) or result.stopped(networks)
    run.model_sha256 = found.model_sha256
    run.deployed = "" if found.selection is None else found.selection.deployed
    return Found(todo.device, run, curve, rows[-1].iteration if rows else -1)


def _evaluation(found: Result, name: str) -> Evaluation | None:
    one: Evaluation | None = getattr(found, name)
    return one


def _phase(found: Result, run: Run) -> tuple[str, int, int]:
    """How far a run is: phase, step, steps."""
    if found.faulty_after is not None:
        return "done", run.done, run.iterations
    if run.done:
        return "train", run.done, run.iterations
    return "before", 0, 0
