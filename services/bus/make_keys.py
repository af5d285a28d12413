"""``python -m services.bus.make_keys FILE DEVICE...``: add a new signing key for each device to a file of keys."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from accelsim.files import write_whole
from services import devices
from services.bus.keys import KEY_BYTES, Keys, read


def make(path: Path, names: list[str]) -> None:
    """Adds a new random key for each device to a file, which only its owner can read.

    Raises ValueError for a name that is none, or has a key there already.
    """
    there = read(path) if path.exists() else Keys(path, {})
    for name in names:
        devices.listed(name)
        if name in there or names.count(name) > 1:
            raise ValueError(f"{path}: device {name} has a key; remove its line to make another")
    kept = path.read_bytes() if path.exists() else b""
    if kept and not kept.endswith(b"\n"):
        kept += b"\n"
    lines = "".join(f"{name} {secrets.token_hex(KEY_BYTES)}\n" for name in names)
    write_whole(path, kept + lines.encode(), mode=0o600)


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
