"""What ``r2f tap`` prints of a message, for people and as JSON lines."""

from __future__ import annotations

import asyncio
import json

import pytest

from broker.launch import launch
from r2f import tap
from services.bus import Bus
from services.bus.messages import Progress, Timing


async def watched(capsys: pytest.CaptureFixture[str], *, as_json: bool) -> list[str]:
    """Two messages through a real broker, tapped."""
    async with launch(embedded=True) as broker:
        url = broker.url()
        async with Bus(url, service="trainer", device="edge-0") as bus:
            tapping = asyncio.create_task(tap.tap("event/#", url, "edge-0", as_json=as_json, count=2))
            # Events are not kept for who comes late: send until the tap is there.
            while not tapping.done():
                await bus.publish("event/backward", Timing(session="s", stage="backward", iteration=7, host_s=0.25))
                await bus.publish("event/progress", Progress(session="s", phase="train", step=1, steps=2, value=0.5))
                await asyncio.sleep(0.05)
            await tapping
    return capsys.readouterr().out.splitlines()


async def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in await watched(capsys, as_json=True)]
    assert {line["topic"] for line in lines} == {"r2f/v1/edge-0/event/backward", "r2f/v1/edge-0/event/progress"}
    timing = next(line for line in lines if line["topic"].endswith("backward"))
    assert (timing["stage"], timing["iteration"], timing["host_s"]) == ("backward", 7, 0.25)


async def test_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    lines = await watched(capsys, as_json=False)
    assert len(lines) == 2
    assert any("event/backward" in line and "host_s=0.25" in line and "session" not in line for line in lines)


def test_bytes_and_long_lists_are_cut() -> None:
    assert tap._brief({"body": b"123", "samples": list(range(40))}) == {
        "body": "<3 bytes>",
        "samples": [*range(32), "... 40 in all"],
    }
