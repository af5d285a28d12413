"""``r2f conform``: put a program to the checks of its role, and say what came of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, assert_never

from accelsim.int8.network import Shape
from r2f.conform import agent, codec, voter
from r2f.conform.probe import Check, Verdict, probing, verdicts

Role = Literal["agent", "voter", "codec"]


async def conform(
    broker: str, device: str, role: Role, within_s: float, images: Shape, steps: int, say: Callable[[Verdict], None]
) -> bool:
    """Whether no check failed; each verdict is said as it comes. Raises BusError where no broker answers.

    ``images`` (H, W, C) is the size of an agent's, ``steps`` by how many integers its MAC layers may differ.
    """
    listen: tuple[str, ...]
    checks: Sequence[Check]
    match role:
        case "voter":
            listen, checks = voter.LISTEN, voter.CHECKS
        case "agent":
            listen, checks = agent.LISTEN, agent.checks(images, steps)
        case "codec":
            listen, checks = codec.LISTEN, codec.checks()
        case _:
            assert_never(role)
    passed = True
    async with probing(broker, device, within_s, *listen) as probe:
        try:
            async for verdict in verdicts(probe, role, checks):
                say(verdict)
                passed &= verdict.word != "FAIL"
        finally:
            await probe.raw("down/mode", b"", retain=True)  # nothing of the kit stays behind
    return passed


def size_of(text: str) -> Shape:
    """``HxWxC``. Raises ValueError for what is none, or smaller than the kit's network takes."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        raise ValueError(f"--image-size {text!r}: expected HxWxC, e.g. 224x224x3")
    height, width, channels = map(int, parts)
    if min(height, width) < 8 or channels < 1:
        raise ValueError(f"--image-size {text}: the kit's network takes 8x8x1 and larger")
    return height, width, channels
