"""Lowering in a fraction of its time, for tests that need an int8 network and not a good one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def few_rounds() -> Iterator[None]:
    """A tenth of the rounds in which gains and scales are chosen, which are most of the time."""
    with mock.patch("accelsim.lowering.balance._ROUNDS", 10):
        yield
