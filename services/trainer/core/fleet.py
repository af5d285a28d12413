"""Several devices of one run: ``fleet.json`` in its folder, beside a folder for each device. Written once, by ``r2f``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from accelsim.files import write_whole
from services.trainer.core.task import Sharing

FILE = "fleet.json"
Named = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Fleet(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which devices a run is of, and what they share."""

    sharing: Sharing
    devices: Annotated[tuple[Named, ...], Meta(min_length=1, max_length=4096)]
    """Those that it began with, by name."""
    pattern: str = ""
    """With one model for all: who is announced later and matches takes part from then on; empty for nobody."""

    def __post_init__(self) -> None:
        if len(set(self.devices)) != len(self.devices):
            raise ValueError("devices: one is there twice")


def write(folder: Path, fleet: Fleet) -> None:
    """Puts the fleet into a run's folder."""
    write_whole(folder / FILE, msgspec.json.format(msgspec.json.encode(fleet)) + b"\n")


def read(folder: Path) -> Fleet | None:
    """The fleet of a run's folder, None where the run is of one device. Raises ValueError that names the file."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Fleet)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error
