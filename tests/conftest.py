"""Where the optional real data lies (tests that need it skip, and say so, where it is absent), and how threads wait."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads of torch that wait for one another in a loop take the cores from the processes that the tests start, and where others
# use the machine too, a lowering of seconds takes a minute. Set before the first import of torch; processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Where bytecode is not kept, as in many containers, each of the hundreds of programs that the tests start would compile all it
# imports of ours anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Where pytest-xdist runs tests side by side, one process a core, torch's threads would only be in one another's way. It is set
# for the process and not in the environment: programs that the tests start have as many threads as anywhere.
if "PYTEST_XDIST_WORKER" in os.environ:
    import torch

    torch.set_num_threads(1)

# In the background of a script SIGINT is ignored, and would be by every program that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with ``data/`` and ``weights/``: $R2F_DATA, else ``../shared`` beside the checkout."""
    folder = Path(os.environ.get("R2F_DATA", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data and weights are not at {folder}; set R2F_DATA to run this test")
    return folder


@pytest.fixture
def collected() -> Iterator[None]:
    """Collects what a test leaves while its own filters of warnings still hold."""
    yield
    gc.collect()
