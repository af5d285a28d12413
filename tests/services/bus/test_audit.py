"""The audit log: who set what, and who was refused, whatever a stranger does to fill it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from accelsim.faults import Rates
from services.bus import Bus, encoding, make_keys, topics
from services.bus.audit import A_MINUTE, LONGEST, Audit
from services.bus.messages import Ack, Deploy, SetMode
from services.scheme import Scheme

MODE = topics.build("d", "down", "mode")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mode(seq: int = 1) -> SetMode:
    return SetMode(session="s", seq=seq, mode="training", rates=Rates(weight=1e-3), scheme=Scheme(protected=(0, 2)))


def test_what_was_set_and_by_whom(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit = Audit(path, "agent", "d", "0123abcd")
    audit.heard(MODE, mode(), "b00t")
    network = encoding.inline(np.zeros(10, np.uint8))
    audit.heard(topics.build("d", "edge", "model"), Deploy(session="s", iteration=3, version=5, network=network), "other")
    audit.told(topics.build("d", "up", "ack"), Ack(session="s", of="mode", seq=1, ok=False, error="no room"))
    audit.told(topics.build("d", "up", "ack"), Ack(session="s", of="mode", seq=1, ok=True))
    audit.told(topics.build("d", "up", "ack"), Ack(session="s", of="base", seq=1, ok=False, error="builds on another"))
    one, two, three = lines(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (one["event"], one["how"], one["service"], one["device"], one["key"]) == ("mode", "heard", "agent", "d", "0123abcd")
    assert (one["from"], one["boot"], one["session"], one["seq"], one["mode"]) == ("trainer", "b00t", "s", 1, "training")
    assert (one["protected"], one["rates"]["weight"]) == ([0, 2], 1e-3)
    assert (two["event"], two["from"], two["version"], two["bytes"]) == ("model", "codec-device", 5, [10])
    assert (three["event"], three["reason"], three["of"]) == ("refused", "no room", "mode")


def test_a_flood_of_refusals_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("services.bus.audit.time.monotonic", lambda: now)
    audit = Audit(tmp_path / "audit", "agent", "d", "")
    for _ in range(10_000):
        audit.refused("x" * 10_000)
    assert len(lines(tmp_path / "audit")) == A_MINUTE
    assert (tmp_path / "audit").stat().st_size < A_MINUTE * (LONGEST + 300)
    audit.heard(MODE, mode(), "b")
    now += 61
    audit.refused("later")
    *_, of_mode, last = lines(tmp_path / "audit")
    assert of_mode["event"] == "mode", "what was set is never left out"
    assert last["left_out_before"] == 10_000 - A_MINUTE


def test_a_line_is_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit", "agent", "d", "")
    audit.refused("a\nb\x1b[2J\r\u2028")
    (line,) = (tmp_path / "audit").read_bytes().split(b"\n")[:-1]
    assert b"\x1b" not in line
    assert json.loads(line)["reason"].startswith("a\nb\x1b[2J")


def test_a_file_that_cannot_be_written_is_named_at_once_and_later_said_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        Audit(tmp_path / "none" / "audit", "agent", "d", "")
    with pytest.raises(OSError, match=str(tmp_path)):
        Audit(tmp_path, "agent", "d", "")
    os.mkfifo(tmp_path / "pipe")  # that nobody reads: not waited for
    with pytest.raises(OSError, match="pipe"):
        Audit(tmp_path / "pipe", "agent", "d", "")
    (tmp_path / "logs").mkdir()
    audit = Audit(tmp_path / "logs" / "audit", "agent", "d", "")
    os.remove(tmp_path / "logs" / "audit")
    os.rmdir(tmp_path / "logs")
    with structlog.testing.capture_logs() as logged:
        audit.heard(MODE, mode(), "b")
        audit.heard(MODE, mode(), "b")
    assert len(logged) == 1
    assert str(tmp_path / "logs" / "audit") in logged[0]["reason"]


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Audit(None, "agent", "d", "").refused("x")
    Audit(None, "agent", "d", "").heard(MODE, mode(), "b")
    assert list(tmp_path.iterdir()) == []


async def test_over_a_broker(broker_url: str, device: str, tmp_path: Path) -> None:
    path, file = tmp_path / "keys", tmp_path / "audit"
    make_keys.make(path, [device])
    async with (
        Bus(broker_url, "trainer", device, signing_key_file=path) as trainer,
        Bus(broker_url, "agent", device, signing_key_file=path, audit_log=file) as agent,
        Bus(broker_url, "tap", device, passive=True) as stranger,
    ):
        await agent.subscribe("down/mode")
        stranger._sender.say(stranger.topic("down/mode"), mode(8))
        await stranger.flush()
        await trainer.publish("down/mode", mode(9))
        assert (await agent.receive(30.0))[1] == mode(9)
        origin = trainer.origin
    refused, told = lines(file)
    assert (refused["event"], "not signed" in refused["reason"]) == ("refused", True)
    assert (told["event"], told["seq"], told["boot"], told["key"] != "") == ("mode", 9, origin, True)
