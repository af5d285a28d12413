"""Work that threads share: made once, a step ahead, and gone behind its last user."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from accelsim.engine.ahead import Ahead

LAYERS = [2, 3, 7, 8, 11, 20]


def test_each_is_made_once_and_few_are_alive() -> None:
    made: list[int] = []
    lock = threading.Lock()

    def prepare(index: int) -> str:
        with lock:
            made.append(index)
        return f"made {index}"

    shared = Ahead(LAYERS, prepare, users=3)
    alive: list[int] = []

    def user(_: int) -> list[str]:
        got = []
        for index in LAYERS:
            with shared.of(index) as what:
                got.append(what)
                alive.append(len(shared._made))
        return got

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(user, range(3)))
    assert results == [[f"made {index}" for index in LAYERS]] * 3
    assert sorted(made) == LAYERS
    # The layer of the last thread, the one before whose others wait, and one ahead of each.
    assert max(alive) <= 3
    assert not shared._made


def test_a_thread_that_fails_does_not_leave_the_others_waiting() -> None:
    shared = Ahead(LAYERS, str, users=2)
    started = threading.Barrier(2, timeout=60)

    def fails() -> None:
        with shared.of(2):
            started.wait()
            raise KeyError("mine")

    def goes_on() -> None:
        started.wait()
        for index in LAYERS:
            with shared.of(index):
                pass

    with ThreadPoolExecutor(2) as pool:
        broken, other = pool.submit(fails), pool.submit(goes_on)
        with pytest.raises(KeyError, match="mine"):
            broken.result(60)
        with pytest.raises(RuntimeError, match="another thread of this run failed") as caught:
            other.result(60)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_preparation_that_fails_comes_out() -> None:
    def prepare(index: int) -> str:
        if index == 3:
            raise OSError("no memory")
        return "made"

    shared = Ahead(LAYERS, prepare, users=1)
    with pytest.raises(OSError, match="no memory"), shared.of(2):
        pass
