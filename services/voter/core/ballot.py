"""A layer's executions to what goes on of it: its vote, and of a protected layer the vote that is its actual output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Activation
from services.scheme import Vote
from services.voter.core.vote import settled_vote, vote

TMR: Final = 3
"""Executions that a protected layer has."""


class Ballot(NamedTuple):
    """What a layer's executions came to, of their dtype and shape each."""

    vote: Activation | None
    """What the increments are against; None where there is nothing to vote on."""
    protected: Activation | None
    """The actual output of a protected layer, whose vote goes on; None for others, of which an execution does."""


def count(
    replicas: Sequence[Activation],
    kind: Vote,
    *,
    protected: bool = False,
    positions: npt.NDArray[Any] | None = None,
    values: Activation | None = None,
) -> Ballot:
    """The ballot over a layer's executions; ``positions`` and ``values`` are the referee's, see ``vote.settled_vote``.

    One execution without values is not voted on. Raises ValueError saying what does not fit.
    """
    if not replicas:
        raise ValueError("vote: a layer without replicas")
    if len(replicas) == 1 and values is None:
        if protected:
            raise ValueError(f"vote: a protected layer with one replica; send {TMR}")
        return Ballot(None, None)
    voted = settled_vote(replicas, kind, positions, values)
    if not protected:
        return Ballot(voted, None)
    # In TMR the device has three executions, however many more were run to know its errors.
    return Ballot(voted, voted if len(replicas) == TMR and values is None else vote(replicas[:TMR], kind))


class Tally(NamedTuple):
    """A layer's ballot in numbers of elements."""

    elements: int
    executions: int
    agreed: int
    """Of which all executions said the same."""
    errors: int
    """That ``first`` has otherwise than the vote."""


def tally(replicas: Sequence[Activation], first: Activation, voted: Activation) -> Tally:
    """How far executions agreed, and where ``first``, what the device computed, is not what was ``voted``; all of one shape."""
    agreed = replicas[0].size
    if len(replicas) > 1:
        same = replicas[0] == replicas[1]
        for other in replicas[2:]:
            same &= replicas[0] == other
        agreed = int(np.count_nonzero(same))
    return Tally(first.size, len(replicas), agreed, int(np.count_nonzero(first != voted)))
