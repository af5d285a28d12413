"""How long the server waits for a device."""

from __future__ import annotations

from typing import NamedTuple

ALLOWED_S = 20.0
"""What a device is given to compute at first, beyond what its link takes: as much as where no link is between."""


class Patience(NamedTuple):
    """How long a device may be silent before it is asked again, and how often it is asked to no avail, but for restarts.

    Each time that it was silent it is given more: on top of ``seconds``, which are the link's where there is one, ``ALLOWED_S``
    to compute, then three and seven times that. A repeat makes a pass begin anew, so one that is only slow would never
    end. As with TCP's timer (RFC 6298) the longer time stays until an answer says what the device takes.
    """

    seconds: float = 20.0
    attempts: int = 4

    def more(self, waits_s: float) -> float:
        """How long it may be silent next time, where it was so for that long."""
        longer = self.seconds + 2 * (waits_s - self.seconds) + min(self.seconds, ALLOWED_S)
        return min(longer, self.longest)

    @property
    def longest(self) -> float:
        """Seconds of an attempt at most: those of the fourth."""
        return self.seconds + min(self.seconds, ALLOWED_S) * ((1 << min(self.attempts - 1, 3)) - 1)

    @property
    def in_all(self) -> float:
        """Seconds of all attempts to no avail, whatever the device took before."""
        waits = [self.seconds]
        for _ in range(self.attempts - 1):
            waits.append(self.more(waits[-1]))
        return sum(waits)


def ready_s(patience_s: float) -> float:
    """How long, in seconds, services of a job with that patience may take to be there. Many that start on one machine take
    longer, and their patience says so; behind a slow link it is for what is much larger than a birth."""
    return max(60.0, min(3 * patience_s, 1800.0))
