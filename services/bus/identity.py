"""Who is who on the bus: one service of a name a device, and messages only of the one who has the name (docs/bus.md, "Names").

A service claims its name before it announces itself. Whoever has it answers with a claim of its own, which is older; the
younger one stops. Ages are counted by each process for itself, so no clocks are compared.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from services.bus import topics
from services.bus.address import BusError
from services.bus.messages import Claim, State

PROBE_S: Final = 1.0
"""How long a service waits for the answer of one that is said to be there: a birth that is retained may be of the dead."""


class Names:
    """The names of one device's services as one Bus sees them. ``service`` is its own, ``boot`` this process's origin."""

    def __init__(self, device: str, service: str, boot: str) -> None:
        self.device = device
        self.service = service
        self.boot = boot
        self.rival = ""
        """Boot of another process that is said to have our name."""
        self._born = time.monotonic()
        self._states: dict[str, State] = {}

    def claim(self) -> Claim:
        """Our claim, as of now."""
        return Claim(session="", service=self.service, boot=self.boot, age_s=time.monotonic() - self._born)

    def heard(self, claim: Claim) -> bool:
        """Another's claim: whether ours is older, and must be said. Raises BusError where it is not."""
        if claim.service != self.service or claim.boot == self.boot:
            return False
        ours = self.claim()
        if (ours.age_s, ours.boot) > (claim.age_s, claim.boot):
            return True
        raise BusError(
            f"another {self.service} called {self.device} is on this broker (boot {claim.boot}): "
            "stop it, or give this one a name of its own with --device"
        )

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
        parsed = topics.parse(topic)
        senders = topics.SENDERS.get(parsed.key, ())
        known = [self._states.get(topics.build(parsed.device, "state", sender)) for sender in senders]
        if not known or any(state is None or not state.online or not state.boot for state in known):
            return True
        return any(state is not None and state.boot == origin for state in known)


def sender_states(topic: str) -> list[str]:
    """The topics of the States of those who send on a topic; none for a pattern."""
    if "+" in topic or "#" in topic:
        return []
    parsed = topics.parse(topic)
    return [topics.build(parsed.device, "state", sender) for sender in topics.SENDERS.get(parsed.key, ())]
