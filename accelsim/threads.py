"""How many threads torch has for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ONE = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's for the block, and as many as before behind it. One block of a process at a time.

    With more, sums are taken in another order, so what is computed would depend on the machine's cores; and for small tensors
    waking the others costs more than they do.
    """
    with _ONE:  # another's 1 would else be taken for what was before
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
