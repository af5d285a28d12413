"""``python -m services.codec`` as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("side", ["device", "server"])
def test_all_is_imported_before_anybody_is_told_that_it_is_there(side: str) -> None:
    """Else who repeats a command at its birth is not heard, and waits for a whole patience."""
    script = (
        "import sys; from services.bus import service; from services.codec.__main__ import main; "
        f"service.run = lambda *_, **__: print('services.codec.{side}_side' in sys.modules); main('{side}')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
