"""How a run is stopped by whoever may: ``server/stop`` to its trainer, and what the trainer says to that."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.bus import Bus, topics
from services.bus.messages import State, Stop, Stopping

HEARD_S: Final = 30.0
"""How long a trainer may take to say that it has heard. It says so at once, whatever it computes."""
AGAIN_S: Final = 2.0
"""Between two tries: one that has just started, or lost its broker, did not hear the first."""


class NotStopped(ValueError):
    """Nobody heard that the run is to be stopped, and what to look at."""


@dataclass(slots=True)
class _Told:
    """What the devices' trainers have said: who is on the bus, who has heard, and who has ended because of it."""

    session: str
    heard: Callable[[str], None]
    online: dict[str, bool] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def take(self, topic: str, message: object) -> None:
        device = topics.parse(topic).device
        match message:
            case State():
                self.online[device] = message.online
            case Stopping() if message.session == self.session:
                if device not in self.answered:
                    self.heard(device)
                self.answered.add(device)
                if message.ended:
                    self.ended.add(device)

    def waits(self) -> bool:
        """Whether an answer is missing. A trainer that was there and is gone gives none any more."""
        asked = {name for name, there in self.online.items() if there} - self.answered
        return bool(asked) or not (self.answered or self.online)

    def goes_on(self) -> bool:
        """Whether one that has answered is still there."""
        return any(self.online.get(name, True) and name not in self.ended for name in self.answered)


async def stop(
    broker: str, devices: Sequence[str], session: str, by: str, heard: Callable[[str], None], *, wait: bool,
    give_up_s: float = 10.0,
) -> bool:  # fmt: skip
    """Ask the trainer of a session for its end, in ``by``'s name, on each of the devices; ``heard`` is told which one answers.

    Returns once all that are there have answered; with ``wait`` once they have ended, which takes as long as what is under
    way. Whether any was stopped: not where the run was done before. Raises NotStopped where one does not answer, and BusError
    where the broker is out of reach for ``give_up_s``.
    """
    told = _Told(session, heard)
    async with Bus(broker, "operator", devices[0], passive=True, arena_bytes=0, give_up_s=give_up_s) as bus:
        await bus.subscribe(*(bus.topic(topic, name) for name in devices for topic in ("event/stopping", "state/trainer")))
        end, again = time.monotonic() + HEARD_S, 0.0
        while told.waits():
            now = time.monotonic()
            if now >= end:
                raise NotStopped(
                    f"no trainer of run {session} answered within {HEARD_S:g} s on {bus.url}; "
                    "is the run going on there, and may this account write server/stop?"
                )
            if now >= again:
                again = now + AGAIN_S
                for name in devices:
                    await bus.publish(bus.topic("server/stop", name), Stop(session=session, by=by))
            await _take(bus, told, again - now)
        while wait and told.goes_on():
            await _take(bus, told, None)
    return bool(told.ended if wait else told.answered)


async def _take(bus: Bus, told: _Told, within_s: float | None) -> None:
    try:
        told.take(*await bus.receive(within_s))
    except TimeoutError:
        return
