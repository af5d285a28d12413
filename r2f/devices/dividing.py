"""A folder for each device of a run, in the run's own; with a model of its own, each is a run that can go on alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from r2f import settings as settings_file
from r2f.settings import Settings
from services.trainer import waiting
from services.trainer.core import fleet as fleets
from services.trainer.core import job as jobs
from services.trainer.core.fleet import Fleet

MORE_PATIENCE_S = 2.0
"""For each device: they share the machine, and the server's turns."""


def divide(settings: Settings, folder: Path, fleet: Fleet, files: tuple[str, ...]) -> None:
    """``fleet.json`` and the devices' folders in a run's folder, which holds its job and ``files``."""
    todo = jobs.read(folder)
    todo = msgspec.structs.replace(todo, patience_s=todo.patience_s + MORE_PATIENCE_S * len(fleet.devices))
    jobs.write(folder, todo)
    for device in fleet.devices:
        own = folder / device
        own.mkdir()
        if fleet.sharing == "own":
            for name in files:
                if (folder / name).exists():
                    shutil.copyfile(folder / name, own / name)
            jobs.write(own, msgspec.structs.replace(todo, device=device))
            settings_file.write(own, msgspec.structs.replace(settings, device=device))
        else:  # what each is evaluated with
            for name in (jobs.PLAIN, jobs.TARGETS):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, own / name)
    fleets.write(folder, fleet)


def again(folder: Path, fleet: Fleet) -> None:
    """Have the devices that were given up tried once more."""
    for device in fleet.devices:
        (folder / device / waiting.FAILED).unlink(missing_ok=True)
