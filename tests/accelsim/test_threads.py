"""One thread, whoever else asks for one."""

from __future__ import annotations

import threading

import pytest
import torch

from accelsim.threads import one_thread


def test_as_many_as_before_behind_it() -> None:
    before = torch.get_num_threads()
    with one_thread(), one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == before


def test_another_thread_waits() -> None:
    """It would take the 1 of the first for what was before, and leave that behind."""
    within, leave, found = threading.Event(), threading.Event(), []

    def first() -> None:
        with one_thread():
            within.set()
            leave.wait(10)

    def second() -> None:
        with one_thread():
            found.append(leave.is_set())

    one, other = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert within.wait(10)
    other.start()
    other.join(0.2)
    leave.set()
    one.join()
    other.join()
    assert found == [True]
