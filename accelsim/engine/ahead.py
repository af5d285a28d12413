"""Work that several threads share, prepared by one of them a step ahead."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """What ``users`` threads need for each layer: made once by ``prepare``, kept until the last has used it.

    All threads take the layers in the order of ``indices``. No thread gets more than a layer ahead of another, so that
    only a few layers' replicas are in memory.
    """

    def __init__(self, indices: Sequence[int], prepare: Callable[[int], Made], users: int) -> None:
        self._prepare = prepare
        self._next = dict(itertools.pairwise(indices))
        self._locks = {index: threading.Lock() for index in indices}
        self._made: dict[int, Made] = {}
        self._left = dict.fromkeys(indices, users)
        self._done = threading.Condition()
        self._failed: BaseException | None = None

    @contextmanager
    def of(self, index: int) -> Iterator[Made]:
        """A layer's, for the duration; raises RuntimeError if another thread failed meanwhile."""
        try:
            yield self._get(index)
        except BaseException as error:
            with self._done:
                self._failed = self._failed or error
                self._done.notify_all()
            raise
        with self._done:
            self._left[index] -= 1
            if not self._left[index]:
                del self._made[index]
                self._done.notify_all()

    def _get(self, index: int) -> Made:
        with self._done:
            self._done.wait_for(lambda: self._failed is not None or sum(made < index for made in list(self._made)) <= 1)
            if self._failed:
                raise RuntimeError("engine: another thread of this run failed") from self._failed
        with self._locks[index]:
            if index not in self._made:
                self._made[index] = self._prepare(index)
            made = self._made[index]
        following = self._next.get(index)
        # Not waiting: if it is locked, somebody is at it already.
        if following is not None and self._locks[following].acquire(blocking=False):
            try:
                if following not in self._made and self._left[following]:
                    self._made[following] = self._prepare(following)
            finally:
                self._locks[following].release()
        return made
