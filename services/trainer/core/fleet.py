"""Several devices of one run: ``fleet.json`` in its folder, beside a folder for each device. Written once, by ``r2f``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from accelsim.files import append_whole, write_whole
from services.trainer.core.task import Sharing

FILE = "fleet.json"
STEPS = "steps.jsonl"
TAKEN: Final = re.compile(r"logs|lock|.*\.(json|jsonl|toml|safetensors|npy|png|txt)")
"""What else is in a run's folder, beside a folder for each device."""
Named = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Fleet(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which devices a run is of, and what they share."""

    sharing: Sharing
    devices: Annotated[tuple[Named, ...], Meta(min_length=1, max_length=4096)]
    """Those that it began with, by name."""
    pattern: str = ""
    """With one model for all: who is announced later and matches takes part from then on; empty for nobody."""
    wait_s: Annotated[float, Meta(gt=0, le=86400)] = 30.0
    """With one model for all: how much longer than half of the devices another may take for its part of a step."""

    def __post_init__(self) -> None:
        if len(set(self.devices)) != len(self.devices):
            raise ValueError("devices: one is there twice")
        if taken := [name for name in self.devices if TAKEN.fullmatch(name)]:
            raise ValueError(f"device {taken[0]}: a run's folder has a file of that kind; name the device otherwise")


class Shared(msgspec.Struct, kw_only=True, frozen=True):
    """A line of ``steps.jsonl``: one iteration of a model that several devices share."""

    iteration: int
    loss: float
    grad_norm: float
    wall_s: float
    devices: tuple[str, ...]
    """Whose batches it learnt from."""
    late: tuple[str, ...] = ()
    """Who did not answer in time."""
    lost: dict[str, str] = {}
    """Who was given up since the iteration before, and why."""
    joined: tuple[str, ...] = ()
    """Who came since then."""


def steps(folder: Path, before: int | None = None) -> list[Shared]:
    """The lines of a run's ``steps.jsonl``, none where there is no file; those up to an iteration, where one is given."""
    path = folder / STEPS
    if not path.exists():
        return []
    found = [msgspec.json.decode(line, type=Shared) for line in path.read_bytes().split(b"\n")[:-1]]
    return [one for one in found if before is None or one.iteration < before]


def truncate(folder: Path, iteration: int) -> None:
    """Drop the lines from an iteration on, which is done again."""
    write_whole(folder / STEPS, b"".join(msgspec.json.encode(one) + b"\n" for one in steps(folder, iteration)))


def append(folder: Path, step: Shared) -> None:
    """Add a line, whole. Raises OSError if the disk refuses."""
    append_whole(folder / STEPS, msgspec.json.encode(step) + b"\n")


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
    except NotADirectoryError:
        raise ValueError(f"{folder}: is a file; a run is a folder") from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error
