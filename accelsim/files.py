"""Files that are whole, whoever reads them and whenever the power goes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")
LOOKS: Final = 5
LOOK_S: Final = 0.02


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


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds the lock of a file, which is made where it is not there, for the block.

    It is gone with this process, however that ends. Raises ValueError with ``busy`` where another process holds it.
    """
    with path.open("a") as file:
        for left in reversed(range(LOOKS)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise ValueError(busy) from None
            time.sleep(LOOK_S)  # who only looks (``is_locked``) has it for a moment, too
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds a file's lock."""
    if not path.exists():
        return False
    try:
        with locked(path, ""):
            return False
    except ValueError:
        return True


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
