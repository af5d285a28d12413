"""Where the optional real data lies. Tests that need it skip, and say so, where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with ``data/`` and ``weights/``: $R2F_DATA, else ``../shared`` beside the checkout."""
    folder = Path(os.environ.get("R2F_DATA", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data and weights are not at {folder}; set R2F_DATA to run this test")
    return folder
