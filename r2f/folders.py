"""Run folders: their names, who works on one, where its broker is, and what has become of it.

A run is its folder. ``run.toml`` holds what the user asked for, ``job.json`` what the trainer is to do; everything else in it
is made from those two, so that a run can be resumed, or handed to another machine, as a folder.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

import msgspec

from accelsim import files
from r2f import settings as settings_file
from r2f.settings import Settings, SettingsError
from services.metric import Metric
from services.trainer import waiting
from services.trainer.core import fleet as fleets
from services.trainer.core import job as jobs
from services.trainer.core import ledger, result
from services.trainer.core.evaluation import Evaluation

LOCK = "lock"
BROKER = "broker.txt"
State = Literal["running", "done", "stopped", "given up", "damaged"]


class Run(NamedTuple):
    """One row of ``r2f runs``. ``before`` and ``after``: mean metric of the faulty device, None if not measured."""

    folder: Path
    state: State
    settings: Settings | None
    iterations: int
    """Done, of ``total``, which is None until the device has said how many samples an epoch has."""
    total: int | None
    before: float | None
    after: float | None
    why: str = ""
    metric: Metric = "top1"


@contextmanager
def new(parent: Path, network: str) -> Iterator[Path]:
    """A folder for a new run, ``{parent}/{date}-{time}-{network}``, this process's alone from the start.

    Gone again behind the block, with what was made of ``parent``, where no run came of it. Raises ValueError where nothing
    can be made there.
    """
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub(r'[^A-Za-z0-9_.-]', '-', network)[:40]}"
    try:
        made = [path for path in (parent, *parent.parents) if not path.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        folder = _made(parent, stem)
    except OSError as error:
        raise ValueError(f"{parent}: run folders cannot be made there (--out): {error.strerror}") from error
    try:
        yield folder
    finally:
        if not (folder / settings_file.FILE).exists():
            shutil.rmtree(folder)
            with suppress(OSError):  # others have put something into it
                for path in made:
                    path.rmdir()


def _made(parent: Path, stem: str) -> Path:
    number = 1
    while True:
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """This process alone works on the folder for the block. Raises ValueError where another one does."""
    busy = f"{folder}: another r2f works on this run; wait for it, or start a run of your own"
    with files.locked(folder / LOCK, busy):
        try:
            yield
        finally:
            (folder / BROKER).unlink(missing_ok=True)


def is_running(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    return files.is_locked(folder / LOCK)


def all_runs(parent: Path) -> list[Run]:
    """The runs below a folder, oldest first; none where there is no such folder. Raises ValueError where it is a file."""
    if parent.is_file():
        raise ValueError(f"{parent}: is a file; runs lie in a folder")
    return [look(path.parent) for path in sorted(parent.glob(f"*/{settings_file.FILE}"))]


def look(folder: Path) -> Run:
    """What has become of one run."""
    try:
        settings = settings_file.read(folder / settings_file.FILE)
        fleet = fleets.read(folder)
        if fleet is not None and fleet.sharing == "own":
            return _together(folder, settings, [look(folder / device) for device in fleet.devices])
        # One model of several devices is measured on each of them.
        parts = [folder] if fleet is None else sorted(path.parent for path in folder.glob(f"*/{result.FILE}"))
        each = [result.read(part) for part in parts] or [result.read(folder)]
        done = max((len(ledger.read(part / result.PROGRESS)) for part in parts), default=0)
        outcome, metric = waiting.outcome(folder), measured_by(folder)
    except (SettingsError, ValueError, msgspec.MsgspecError) as error:
        return Run(folder, "damaged", None, 0, None, None, None, str(error))
    state: State
    if is_running(folder):
        state, why = "running", ""
    elif outcome is None:
        by = result.stopped(folder)
        state, why = "stopped", f"{by}{'; ' if by else ''}go on with: r2f retrain --resume {folder}"
    else:
        state, why = ("done", "") if outcome == "" else ("given up", outcome)
    total = next((found.iterations for found in each if found.iterations is not None), settings.iterations)
    before, after = (_mean(metric, of) for of in ([one.faulty_before for one in each], [one.faulty_after for one in each]))
    return Run(folder, state, settings, done, total, before, after, why, metric)


def measured_by(folder: Path) -> Metric:
    """The metric of a run's folder; before its job is written, that of classifiers."""
    return (jobs.read(folder).metric or "top1") if (folder / jobs.FILE).exists() else "top1"


def _together(folder: Path, settings: Settings, each: list[Run]) -> Run:
    """A run of several devices, each with a run of its own: iterations of all, means of those that have been measured."""
    done = all(one.state == "done" for one in each)
    failed = [one for one in each if one.state in ("given up", "damaged")]
    state: State = "running" if is_running(folder) else "done" if done else "given up" if failed else "stopped"
    why = "; ".join(f"{one.folder.name}: {one.why}" for one in failed)
    if state == "stopped" or failed:
        why += f"{'; ' if why else ''}go on with: r2f retrain --resume {folder}"
    totals = [one.total for one in each if one.total is not None]
    before = [one.before for one in each if one.before is not None]
    after = [one.after for one in each if one.after is not None]
    return Run(
        folder,
        state,
        settings,
        sum(one.iterations for one in each),
        sum(totals) if len(totals) == len(each) else None,
        sum(before) / len(before) if before else None,
        sum(after) / len(after) if after else None,
        "" if state == "running" else why,
        measured_by(folder),
    )


def newest_running(parent: Path, otherwise: str = "") -> Path:
    """The newest run below a folder that is going on. Raises ValueError where there is none."""
    running = [path.parent for path in sorted(parent.glob(f"*/{BROKER}")) if is_running(path.parent)]
    if not running:
        there = all_runs(parent)
        known = f": the newest run, {there[-1].folder.name}, {_words(there[-1])}" if there else ""
        raise ValueError(f"no run is going on below {parent}{known}; start one{otherwise}")
    return running[-1]


def _words(run: Run) -> str:
    """What has become of a run that has no broker."""
    match run.state:
        case "running":
            return "is only starting"
        case "stopped":
            return f"is stopped (r2f retrain --resume {run.folder} goes on with it)"
        case _:
            return f"is {run.state}"


def broker_of(run: Path) -> tuple[str, str]:
    """(address, device) of a run's broker; ``+`` for several devices. Raises ValueError where it has none now."""
    address = run / BROKER
    if not address.exists():
        known = ""
        if (run / settings_file.FILE).exists():
            known = f", it {_words(look(run))}"
        elif run.is_dir():
            known = ", or is still being prepared: Ctrl-C where it was started ends that"
        raise ValueError(f"{run}: has no broker now ({address.name} is missing): the run is not going on{known}")
    fleet = fleets.read(run)
    device = settings_file.read(run / settings_file.FILE).device if fleet is None else "+"
    return address.read_text(encoding="utf-8").strip(), device


def _mean(metric: Metric, found: Sequence[Evaluation | None]) -> float | None:
    """Of the evaluations that were made."""
    means = [fmean(one.of(metric)) for one in found if one is not None]
    return fmean(means) if means else None
