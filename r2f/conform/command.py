"""``r2f conform``: put a program to the checks of its role, and say what came of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from accelsim.int8.network import Shape
from r2f.conform import agent, voter
from r2f.conform.probe import Verdict, probing, verdicts

Role = Literal["agent", "voter", "codec"]


async def conform(broker: str, device: str, role: Role, within_s: float, images: Shape, steps: int, say: Callable[[Verdict], None]) -> bool:
    """Whether no check failed; each verdict is said as it comes. Raises BusError where no broker answers.

    ``images`` (H, W, C) is the size of an agent's, ``steps`` by how many integers its MAC layers may differ.
    """
    match role:
        case "voter":
            listen, checks = voter.LISTEN, voter.CHECKS
        case "agent":
            listen, checks = agent.LISTEN, agent.checks(images, steps)
    passed = True
    async with probing(broker, device, within_s, *listen) as probe:
        async for verdict in verdicts(probe, role, checks):
            say(verdict)
            passed &= verdict.word != "FAIL"
    return passed
