"""How many threads torch has for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's for the block, and as many as before behind it.

    With more, sums are taken in another order, so what is computed would depend on the machine's cores; and for small tensors
    waking the others costs more than they do.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
