"""Files that are whole, whoever reads them and whenever the power goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(
    path: str | os.PathLike[str], data: bytes, *, keep: str | os.PathLike[str] | None = None, mode: int = 0o666
) -> None:
    """Puts ``data`` into a file: a reader, or a crash at any moment, finds the old content or the new one.

    ``keep`` is the name under which the old file stays, in the same folder; ``mode`` the new one's permissions, less the
    umask. Raises OSError that names the file if the disk refuses; the old one is then as it was, and nothing is left beside it.
    """
    target = Path(path)
    with naming(target):
        _replace(target, data, keep, mode)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Has an OSError of the block name the file: what a write raises where the disk is full says only that."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def _replace(target: Path, data: bytes, keep: str | os.PathLike[str] | None, mode: int) -> None:
    fresh = _beside(target)
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # complete on the disk before it takes the name
        if keep is not None and target.exists():
            # A link and a rename, not two renames: the file is there by its usual name throughout.
            kept = _beside(Path(keep))
            kept.unlink(missing_ok=True)
            os.link(target, kept)
            os.replace(kept, keep)
        os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)
    _sync(target.parent)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _sync(folder: Path) -> None:
    """Has the folder's names on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
