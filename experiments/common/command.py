"""What the experiments' command lines share: the folder of real data, kinds of numbers, one line where something is missing."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from r2f.pool import PoolError

UNUSABLE: Final = 2
"""Exit code where something that was given, or is missing, cannot be used."""


class InputError(ValueError):
    """Something that an experiment was given and cannot use; the message names it and says what to do."""


def default_folder() -> Path:
    """Folder of real data and trained weights: $R2F_DATA, else ``shared`` beside the checkout."""
    return Path(os.environ.get("R2F_DATA", Path(__file__).resolve().parents[3] / "shared"))


def real(shared: Path, name: str) -> Path:
    """A file of the folder of real data. Raises InputError that says what that folder is."""
    path = shared / name
    if not path.is_file():
        raise InputError(
            f"{path}: not found. This experiment reads real photos and trained weights from one folder, which --shared or "
            "$R2F_DATA names; docs/experiments.md lists its files and where they come from"
        )
    return path


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the experiment's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_shared(to: argparse.ArgumentParser) -> None:
    """``--shared``."""
    to.add_argument(
        "--shared",
        type=Path,
        default=default_folder(),
        metavar="FOLDER",
        help="real photos in data/ and trained weights in weights/, see docs/experiments.md [%(default)s]",
    )


def add_cache(to: argparse.ArgumentParser) -> None:
    """``--cache``."""
    default = Path("runs/networks")
    to.add_argument("--cache", type=Path, default=default, metavar="FOLDER", help="keeps lowered networks [%(default)s]")


def add_networks(to: argparse.ArgumentParser, known: Sequence[str], default: Sequence[str] | None = None) -> None:
    """``--network``, several of those known."""
    chosen = list(default or known)
    to.add_argument("--network", nargs="+", choices=known, default=chosen, metavar="NAME", help=f"of {', '.join(known)}")


def add_rates(to: argparse.ArgumentParser, default: Sequence[float]) -> None:
    """``--ber``, several."""
    to.add_argument("--ber", nargs="+", type=rate, default=list(default), metavar="RATE", help="bit error rates [%(default)s]")


def positive(text: str) -> int:
    """A number that is 1 or more."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return value


def rate(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def quality(text: str) -> int:
    """A JPEG quality."""
    value = positive(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a JPEG quality, 1 to 100")
    return value


def run(main: Callable[[], int | None]) -> None:
    """Ends the process with ``main``'s exit code; what it was given and cannot use is one line on stderr and exit code 2."""
    try:
        code = main()
    except (ValueError, PoolError, OSError) as error:  # as r2f has it: InputError, DataError, SettingsError, WeightsError ...
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        code = UNUSABLE
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
