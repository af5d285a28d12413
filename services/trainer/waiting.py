"""Runs that wait below a folder for a trainer in a container of its own.

Who asks for a run writes its folder, ``run.toml`` last, and waits for ``outcome``. The trainer takes ``next_run``, does it, and
where it gives up says why with ``give_up``. A trainer that is killed leaves the run undone, and takes it again.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path

from accelsim import files
from accelsim.files import write_whole
from services.trainer.core import fleet, result

READY = "run.toml"
FAILED = "failed.txt"
LOCK = "trainer.lock"
POLL_S = 0.5


def next_run(runs: Path) -> Path:
    """The first folder below ``runs``, by name, that is ready, not done, given up or stopped, and no other trainer's; waits
    for one."""
    while True:
        for ready in sorted(runs.glob(f"*/{READY}")):
            if outcome(ready.parent) is None and not result.stopped(ready.parent) and not files.is_locked(ready.parent / LOCK):
                return ready.parent
        time.sleep(POLL_S)


def alone(folder: Path) -> AbstractContextManager[None]:
    """This trainer alone works on the folder for the block. Raises ValueError where another one does."""
    return files.locked(folder / LOCK, f"{folder}: another trainer works on this run; it goes on undisturbed, this one ends")


def give_up(folder: Path, error: BaseException) -> None:
    """Leave the reason in the run's folder, so that nobody takes it again until it is resumed."""
    write_whole(folder / FAILED, f"{error}\n".encode())


def stop(folder: Path, reason: str) -> None:
    """Leave in the run's folder who had it stopped: nobody takes it again until it is resumed."""
    write_whole(folder / result.STOPPED, f"{reason}\n".encode())


def outcome(folder: Path) -> str | None:
    """None while a run is not done, "" when it is, else why it was given up; of several devices, which of them and why."""
    failed = folder / FAILED
    if failed.exists():
        return failed.read_text(encoding="utf-8").strip() or "given up without a reason"
    try:
        of = fleet.read(folder)
        if of is not None and of.sharing == "own":
            each = {device: outcome(folder / device) for device in of.devices}
            if None in each.values():
                return None
            return "; ".join(f"{device}: {reason}" for device, reason in each.items() if reason)
        return "" if result.read(folder).model_sha256 else None
    except ValueError as error:  # a damaged folder stops itself, not all that wait beside it
        return str(error)
