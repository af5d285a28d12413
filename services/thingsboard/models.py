"""Networks that may be deployed: files below a folder, by the sha256 of their bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from accelsim.int8 import storage
from accelsim.int8.network import Network

MOST_FILES: Final = 4096
"""That are looked at, in the order of their paths."""


class Models:
    """The folder's networks. Files are hashed when they are first seen, and again when they have changed."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._digests: dict[Path, tuple[float, int, str]] = {}

    def find(self, sha256: str) -> Network:
        """The network whose sha256 begins so, in lower-case hex.

        Raises ValueError where there is none, or more than one, or the file is no network; OSError where it cannot be read.
        """
        if self.folder is None:
            raise ValueError("this bridge has no folder of models; start it with --models")
        found: dict[str, Path] = {}
        for path in sorted(self.folder.rglob("*.safetensors"))[:MOST_FILES]:
            digest = self._digest(path)
            if digest.startswith(sha256):
                found.setdefault(digest, path)
        if len(found) != 1:
            what = f"{len(found)} models begin with {sha256}; give more digits" if found else f"no model has sha256 {sha256}"
            raise ValueError(f"{what} (in {self.folder})")
        return storage.load(next(iter(found.values())))

    def _digest(self, path: Path) -> str:
        status = path.stat()
        known = self._digests.get(path)
        if known is None or known[:2] != (status.st_mtime, status.st_size):
            with path.open("rb") as file:
                known = (status.st_mtime, status.st_size, hashlib.file_digest(file, "sha256").hexdigest())
            self._digests[path] = known
        return known[2]
