"""Answers to remote calls: each call is carried out once, however often it comes.

ThingsBoard numbers the calls of a device anew when it starts anew, so a call is known by its content too, and not for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

REMEMBERED: Final = 4096
"""Answers, of all devices together."""
REMEMBERED_S: Final = 60.0


class Key(NamedTuple):
    """A call: its device, its number, and the bytes that it came in."""

    device: str
    id: int
    content: bytes


@dataclass(slots=True)
class Answers:
    """What was answered, and what is being carried out. ``now`` is in seconds of the caller's clock."""

    _given: OrderedDict[Key, tuple[float, Any]] = field(default_factory=OrderedDict)
    _under_way: set[Key] = field(default_factory=set)

    def begin(self, key: Key, now: float) -> bool:
        """Whether this call is new: to be carried out now, and ended with ``give``."""
        at, _ = self._given.get(key, (float("-inf"), None))
        if key in self._under_way or now - at < REMEMBERED_S:
            return False
        self._under_way.add(key)
        self._given.pop(key, None)
        return True

    def given(self, key: Key) -> Any:
        """The answer that was given, None where there is none yet."""
        return self._given.get(key, (0.0, None))[1]

    def give(self, key: Key, answer: Any, now: float, *, done: bool = True) -> None:
        """Note an answer; not ``done``, it is not the last one."""
        if done:
            self._under_way.discard(key)
        self._given[key] = (now, answer)
        self._given.move_to_end(key)
        while len(self._given) > REMEMBERED:
            self._given.popitem(last=False)
