"""``r2f stop``: ask a run that goes on, wherever its trainer is, for its end."""

from __future__ import annotations

import asyncio
import getpass
import socket
from collections.abc import Callable
from pathlib import Path

from r2f import folders
from r2f import settings as settings_file
from services import stopping
from services.trainer import waiting
from services.trainer.core import fleet as fleets
from services.trainer.core import job

WORDS = 64
"""Most characters of a name."""


def stop(run: Path | None, parent: Path, broker: str | None, by: str | None, say: Callable[[str], None], *, wait: bool) -> bool:
    """Stops a run, the newest below ``parent`` where none is named; whether it was stopped before it was done.

    ``broker`` is its address where that has a password, which no folder keeps. Raises ValueError for what is no run that goes
    on, a ``by`` that is no name, or a trainer that died meanwhile; NotStopped where nobody answers; BusError where the broker
    is out of reach.
    """
    name = whoever() if by is None else by
    if not name or not name.isprintable() or len(name) > WORDS:
        raise ValueError(f"--by {name!r}: 1 to {WORDS} printable characters that say who asks")
    folder = folders.newest_running(parent) if run is None else run
    address, _ = folders.broker_of(folder)
    fleet = fleets.read(folder)
    devices = (settings_file.read(folder / settings_file.FILE).device,) if fleet is None else fleet.devices

    def heard(device: str) -> None:
        say(f"{device}: the trainer ends after what is under way")

    stopped = asyncio.run(stopping.stop(broker or address, devices, job.read(folder).session, name, heard, wait=wait))
    if not stopped and waiting.outcome(folder) != "":
        raise ValueError(f"{folder}: its trainer was gone before it could stop, and may be started again; ask again")
    return stopped


def whoever() -> str:
    """The user and host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as containers have
        user = "somebody"
    return f"{user}@{socket.gethostname()}"[:WORDS]
