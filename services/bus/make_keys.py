"""``python -m services.bus.make_keys FILE DEVICE...``: add a new signing key for each device to a file of keys."""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelsim.files import write_whole
from services import devices
from services.bus.keys import KEY_BYTES, Keys, read


def make(path: Path, names: list[str]) -> None:
    """Adds a new random key for each device to a file, which only its owner can read.

    Raises ValueError for a name that is none, or has a key there already.
    """
    for name in names:
        if not devices.LEVEL.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name of a device")
    with _alone(path.parent):
        there = read(path) if path.exists() else Keys(path, {})
        for name in names:
            if name in there or names.count(name) > 1:
                raise ValueError(f"{path}: device {name} has a key; remove its line to make another")
        kept = path.read_bytes() if path.exists() else b""
        if kept and not kept.endswith(b"\n"):
            kept += b"\n"
        lines = "".join(f"{name} {secrets.token_hex(KEY_BYTES)}\n" for name in names)
        write_whole(path, kept + lines.encode(), mode=0o600)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other of these commands writes into the folder meanwhile: the key that it had made would be lost."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main() -> None:
    """The command. Exits with 1 and one line on stderr."""
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m services.bus.make_keys FILE DEVICE...: add a new signing key for each device to a file")
    try:
        make(Path(sys.argv[1]), sys.argv[2:])
    except (ValueError, OSError) as error:
        sys.exit(f"keys: {error}")


if __name__ == "__main__":
    main()
