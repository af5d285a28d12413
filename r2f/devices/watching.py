"""The progress of several devices as one: what the display shows."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

import msgspec

from services.bus.messages import Progress


class Merged:
    """Steps of all devices together, phase by phase."""

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._heard: dict[tuple[str, bool], dict[str, Progress]] = defaultdict(dict)

    def of(self, device: str, message: Progress) -> Progress:
        """How far all are, now that one is this far. Who has not been heard has as much to do as this one."""
        heard = self._heard[message.phase, message.faults]
        heard[device] = message
        unheard = max(0, self._devices - len(heard))
        return msgspec.structs.replace(
            message,
            step=sum(one.step for one in heard.values()),
            steps=sum(one.steps for one in heard.values()) + unheard * message.steps,
            value=fmean(one.value for one in heard.values()),
        )
