"""What a process keeps of the memory that it freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading
from services import memory
{call}
import numpy as np

def work():
    np.ones(12_000_000, np.float32)  # 48 MB, written and freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults(call: str) -> int:
    """Pages that the system handed out for 20 arrays of 48 MB, one after the other, each on a thread of its own."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM.format(call=call)], check=True, capture_output=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_a_server_takes_its_memory_once_and_a_device_gives_it_back() -> None:
    kept, given = faults("memory.keep_memory()"), faults("memory.give_memory_back()")
    assert given > 20 * 24, "less than a page for 2 MB, which is a huge one"
    assert kept < given / 10
