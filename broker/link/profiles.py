"""Links by name (Table II of the paper): their rates either way, and their latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Profile:
    """A link, in bits a second either way; ``up`` is from the device. ``latency_s`` is one way."""

    name: str
    up: float
    down: float
    latency_s: float = 0.0

    def rate(self, direction: Direction) -> float:
        """Bits a second that way."""
        return self.up if direction == "up" else self.down


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("lora", 50e3, 50e3),
        Profile("802.15.4g", 800e3, 800e3),
        Profile("hspa", 5.76e6, 21.1e6),
        Profile("lte", 50e6, 150e6),
    )
}


def profile(name: str) -> Profile:
    """The profile of that name. Raises ValueError naming those there are."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"no link profile {name!r}; there are {', '.join(PROFILES)}") from None
