"""``r2f tap``: decoded messages of any topics, a line each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from r2f import folders
from services.bus import Bus, BusError, topics
from services.bus.messages import Message
from services.shown import plain
from services.trainer.core import evaluation

_COLOURS = {"down": "blue", "up": "green", "edge": "cyan", "server": "magenta", "state": "yellow", "event": "white"}
_LONGEST = 32


async def tap(pattern: str, broker: str, device: str, *, as_json: bool, count: int) -> None:
    """Print messages of ``pattern`` until ``count`` have come (0: for ever); ``device`` may be ``+``, all. Raises BusError."""
    console = Console(soft_wrap=True)
    seen = 0
    async with Bus(broker, service="tap", device="all", passive=True, give_up_s=3.0) as bus:
        await bus.subscribe(topics.absolute(pattern, device))
        async for topic, message in bus:
            if as_json:
                print(json.dumps({"topic": topic, **_shown(message)}), flush=True)
            else:
                console.print(_line(topic, message))
            seen += 1
            if seen == count:
                return


async def tap_run(pattern: str, run: Path, device: str | None, *, as_json: bool, count: int) -> None:
    """``tap`` of a run's broker, until the run is over; ``device`` is the run's where None.

    Raises ValueError where the run has no broker, BusError where it goes on and its broker cannot be reached.
    """
    broker, own = folders.broker_of(run)
    try:
        await tap(pattern, broker, device or own, as_json=as_json, count=count)
    except BusError:
        if folders.is_running(run):
            raise
        print(f"{run}: the run is over", file=sys.stderr)


def _line(topic: str, message: Message) -> Text:
    *_, device, plane, name = topic.split("/")
    line = Text()
    line.append(f"{device} ", style="dim")
    line.append(f"{plane}/{name} ", style=f"bold {_COLOURS.get(plane, 'white')}")
    for key, value in _shown(message).items():
        if key not in ("type", "v", "session", "origin", "n"):
            name, text = _said(key, value)
            line.append(name, style="dim")
            line.append(f"{text} ")
    return line


def _said(key: str, value: Any) -> tuple[str, str]:
    """A field's name and value for people. Numbers that only keep evaluations apart from training are said in words; how many
    passes there will be is in no message."""
    if key == "iteration" and (number := evaluation.pass_of(value)) is not None:
        return "evaluation pass ", str(number)
    if key in ("version", "base") and value == evaluation.PLAIN_VERSION:
        return f"{key}=", "the paper's arithmetic"
    return f"{key}=", f"{value:.6g}" if isinstance(value, float) else plain(str(value))


def _shown(value: Any) -> Any:
    """A message as plain data, with bytes as their number and long lists cut: for people and for JSON alike."""
    return _brief(msgspec.to_builtins(value, builtin_types=(bytes,)))


def _brief(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {key: _brief(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        shown = [_brief(item) for item in value[:_LONGEST]]
        return [*shown, f"... {len(value)} in all"] if len(value) > _LONGEST else shown
    return value
