"""Files that are whole, whoever reads them and whenever the power goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def write_whole(
    path: str | os.PathLike[str], data: bytes, *, keep: str | os.PathLike[str] | None = None, mode: int = 0o666
) -> None:
    """Puts ``data`` into a file: a reader, or a crash at any moment, finds the old content or the new one.

    ``keep`` is the name under which the old file stays, in the same folder; ``mode`` the new one's permissions, less the
    umask. Raises OSError if the disk refuses; the old file is then as it was.
    """
    target = Path(path)
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
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(target)  # a write that the disk refuses names nothing
        raise
    finally:
        fresh.unlink(missing_ok=True)
    _sync(target.parent)


def read_lines(path: Path, kind: type[T], cure: str) -> list[T]:
    """A ``kind`` in JSON a line, of a file that is added to at its end; none where there is no file.

    A last line that a kill cut off is taken out of the file. Raises ValueError where another is no ``kind``; ``cure`` says
    what comes of deleting the file.
    """
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = body[: body.rfind(b"\n") + 1]
    if len(whole) < len(body):
        path.write_bytes(whole)
    try:
        return [msgspec.json.decode(line, type=kind) for line in whole.splitlines()]
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}; delete it, and {cure}") from error


def append_whole(path: Path, data: bytes) -> None:
    """Adds ``data`` to the end of a file, all of it or, but for a crash in the middle, nothing. Raises OSError if the disk
    refuses."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            file.truncate(before)
            error.filename = str(path)
            raise


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _sync(folder: Path) -> None:
    """Has the folder's names on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
