"""Who is who on the bus: one service of a name a device, and messages only of the one who has the name (docs/bus.md, "Names").

A service claims its name before it announces itself. Whoever has it answers with a claim of its own, which ranks higher; the
lower one stops.
"""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache
from typing import Final, NoReturn

import msgspec

from services.bus import topics
from services.bus.address import BusError
from services.bus.messages import Claim, State
from services.bus.sending import Sender

PROBE_S: Final = 1.0
"""How long a service waits for the answer of one that is said to be there: a birth that is retained may be of the dead."""


class Names:
    """Who has the names of services, as far as their States have been heard."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}

    def note(self, topic: str, state: State) -> None:
        """The latest State of a service."""
        self._states[topic] = msgspec.structs.replace(state, origin="", n=0)

    def known(self, topic: str) -> State | None:
        """The latest State on a topic, None where there was none."""
        return self._states.get(topic)

    def may_send(self, topic: str, origin: str) -> bool:
        """Whether a message of this origin is of the service that sends on the topic, as far as is known.

        Nobody is turned away while a service that may send there has not announced itself, or is gone: its successor may be
        heard before its State is.
        """
        known = [self._states.get(sender) for sender in sender_states(topic)]
        if not known or any(state is None or not state.online or not state.boot for state in known):
            return True
        return any(state is not None and state.boot == origin for state in known)


class Presence:
    """One service's own State on the bus, and its claim to the name.

    Ranks only grow, and everybody compares (rank, boot) alike. So of several who want one name at once the greatest stays
    whatever the network delays, and the others hear of it; and who has had the name for longer stays, to a factor of two.
    One that ``yields`` stops wherever another wants the name.
    """

    def __init__(self, device: str, state: State, sender: Sender, *, yields: bool = False) -> None:
        self.topic = topics.build(device, "state", state.service)
        self.claims = topics.build(device, *topics.CLAIM.split("/"))
        self.state = state
        self._device = device
        self._sender = sender
        self._yields = yields
        self._rival = ""
        """Boot of another process that is said to have our name."""
        self._run = ""
        """The run that it is at work on, if it said so."""
        self._since: float | None = None
        """When we announced ourselves."""
        self._lost = False

    @property
    def announced(self) -> bool:
        """Whether we have the name."""
        return self._since is not None

    def will(self) -> State:
        """What the broker says for us when we are gone."""
        return msgspec.structs.replace(self.state, online=False, version=0, samples={}, data="")

    async def begin(self) -> None:
        """Claim the name, and announce us unless somebody has it. Raises BusError where the broker goes away meanwhile."""
        self._claim()
        await self._sender.flush()  # what is retained of our name has arrived by then
        deadline = time.monotonic() + PROBE_S
        while self._rival and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            self._sender.check()
        self._since = time.monotonic()
        self.announce()

    def end(self) -> None:
        """Say goodbye, where the name was ours."""
        if self.announced:
            self.announce(msgspec.structs.replace(self.state, online=False))

    def announce(self, state: State | None = None) -> None:
        """Send our State, retained."""
        self.state = state or self.state
        self._sender.say(self.topic, self.state, retain=True)

    def claimed(self, claim: Claim) -> None:
        """Another's claim: answer it. Raises BusError where it ranks higher than ours."""
        if claim.service != self.state.service or claim.boot == self.state.boot or self._lost:
            return
        if not self._yields and (self._rank(), self.state.boot) > (claim.rank, claim.boot):
            self._claim()
            return
        self._lose(claim.boot, claim.session or self._run)

    def _lose(self, boot: str, run: str) -> NoReturn:
        self._lost, self._since = True, None
        work = f", at work on run {run}" if run else ""
        raise BusError(
            f"another {self.state.service} called {self._device} is on this broker (boot {boot}{work}): "
            "stop it, or give this one a name of its own with --device"
        )

    def told(self, state: State) -> None:
        """A State of our name: of another process, or of this one before its connection broke."""
        ours = state.boot == self.state.boot
        self._rival = state.boot if state.online and not ours else ""
        self._run = state.session if self._rival else ""
        if not self.announced or not self.state.online or (ours and state.online):
            return
        if self._rival and self._yields:
            self._lose(self._rival, self._run)
        if self._rival:
            self._claim()  # one of us stops
        self.announce()  # ours stands, not the last will of a predecessor or a rival's birth

    def _rank(self) -> int:
        return 0 if self._since is None else 1 + int(time.monotonic() - self._since).bit_length()

    def _claim(self) -> None:
        claim = Claim(session=self.state.session, service=self.state.service, boot=self.state.boot, rank=self._rank())
        self._sender.say(self.claims, claim)


@lru_cache(maxsize=1024)
def sender_states(topic: str) -> tuple[str, ...]:
    """The topics of the States of those who send on a topic; none for a pattern."""
    if "+" in topic or "#" in topic:
        return ()
    parsed = topics.parse(topic)
    return tuple(topics.build(parsed.device, "state", sender) for sender in topics.SENDERS.get(parsed.key, ()))
