"""What ``r2f tap`` prints of a message, for people and as JSON lines."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from accelsim import files
from broker.launch import launch
from r2f import folders, tap
from r2f import settings as settings_file
from r2f.settings import Settings
from services.bus import Bus, BusError
from services.bus.encoding import decode
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


async def test_a_run_that_ends_while_it_is_tapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which is no error."""
    settings_file.write(tmp_path, Settings())
    with structlog.testing.capture_logs():  # of the broker that is lost
        async with launch(embedded=True) as broker:
            (tmp_path / folders.BROKER).write_text(broker.url())
            async with Bus(broker.url(), service="trainer", device="edge-0") as bus:
                tapping = asyncio.create_task(tap.tap_run("event/#", tmp_path, None, as_json=True, count=0))
                out = ""
                while not out:
                    await bus.publish("event/progress", Progress(session="s", phase="train", step=1, steps=2, value=0.5))
                    await asyncio.sleep(0.05)
                    out = capsys.readouterr().out
        await tapping
    said = capsys.readouterr()
    assert all(json.loads(line)["topic"].endswith("progress") for line in (out + said.out).splitlines())
    assert said.err == f"{tmp_path}: the run is over\n"


async def test_a_run_that_goes_on_ought_to_have_its_broker(tmp_path: Path) -> None:
    settings_file.write(tmp_path, Settings())
    (tmp_path / folders.BROKER).write_text("mqtt://127.0.0.1:1")
    with files.locked(tmp_path / folders.LOCK, ""), pytest.raises(BusError, match="unreachable"):
        await tap.tap_run("event/#", tmp_path, None, as_json=True, count=0)


async def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in await watched(capsys, as_json=True)]
    assert {line["topic"] for line in lines} == {"r2f/v1/edge-0/event/backward", "r2f/v1/edge-0/event/progress"}
    timing = next(line for line in lines if line["topic"].endswith("backward"))
    assert (timing["stage"], timing["iteration"], timing["host_s"]) == ("backward", 7, 0.25)


async def test_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    lines = await watched(capsys, as_json=False)
    assert len(lines) == 2
    assert any("event/backward" in line and "host_s=0.25" in line and "session" not in line for line in lines)


RECORDED = [
    (
        "r2f/v1/edge-0/down/forward",
        {"type": "forward", "iteration": 1073741826, "attempt": 0, "mode": "inference", "version": 1, "split": "test",
         "samples": [380, 381], "seed": 1001, "session": "20261126-095517-digits_cnn"},
        "edge-0 down/forward evaluation pass 3 attempt=0 mode=inference version=1 split=test samples=[380, 381] seed=1001",
    ),
    (
        "r2f/v1/edge-0/event/forward",
        {"type": "timing", "stage": "forward", "iteration": 1073741824, "host_s": 0.046536768997611944,
         "device_s": 0.003700224, "segment": 0, "session": "20261126-095517-digits_cnn"},
        "edge-0 event/forward stage=forward evaluation pass 1 host_s=0.0465368 device_s=0.00370022 segment=0",
    ),
    (
        "r2f/v1/edge-0/event/forward",
        {"type": "timing", "stage": "forward", "iteration": 3, "host_s": 0.25, "session": "20261126-095517-digits_cnn"},
        "edge-0 event/forward stage=forward iteration=3 host_s=0.25",
    ),
    (
        "r2f/v1/edge-0/down/forward",
        {"type": "forward", "iteration": 0, "attempt": 1, "mode": "training", "version": 1, "split": "train",
         "samples": [7], "session": "20261126-095517-digits_cnn"},
        "edge-0 down/forward iteration=0 attempt=1 mode=training version=1 split=train samples=[7]",
    ),
    (
        "r2f/v1/edge-0/up/ack",
        {"type": "ack", "of": "model", "seq": 2, "ok": True, "version": 1073741824, "session": "20261126-095517-digits_cnn"},
        "edge-0 up/ack of=model seq=2 ok=True version=the paper's arithmetic",
    ),
    (
        "r2f/v1/edge-0/event/progress",
        {"type": "progress", "phase": "before", "step": 1, "steps": 2, "value": 95.5, "session": "20261126-095517-digits_cnn"},
        "edge-0 event/progress phase=before step=1 steps=2 value=95.5",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("topic", "recorded", "line"), RECORDED)
def test_recorded_messages_of_evaluations_and_of_training(topic: str, recorded: dict[str, Any], line: str) -> None:
    """Internal numbers are words for people, and stay numbers for programs."""
    message = decode(topic, msgspec.msgpack.encode(recorded))
    assert tap._line(topic, message).plain.strip() == line
    assert tap._shown(message).get("iteration") == recorded.get("iteration")


def test_bytes_and_long_lists_are_cut() -> None:
    assert tap._brief({"body": b"123", "samples": list(range(40))}) == {
        "body": "<3 bytes>",
        "samples": [*range(32), "... 40 in all"],
    }
