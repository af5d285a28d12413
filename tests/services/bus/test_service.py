"""What every service's program does: options, one line where it cannot go on, a traceback in the log for a mistake of ours."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest

from broker.child import environment, python
from broker.launch import free_port, launch
from services.bus import Bus, make_keys
from services.logs import Lines
from tests.services.programs import one_after_another


def test_a_full_disk_ends_nobody_for_a_line_of_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open("/dev/full", "w", buffering=1) as stream, log.open("w") as room:
        said = Lines(stream)
        for _ in range(1000):  # more than a buffer holds
            print("a line that there is no room for", file=said, flush=True)
        os.dup2(room.fileno(), stream.fileno())  # there is room again
        print("kept", file=said, flush=True)
        print("kept", file=said, flush=True)
    *before, first, word, second = log.read_text().splitlines()
    assert (first, word, second) == ("kept", "the disk was full; lines before this one may be missing", "kept")
    assert len(before) < 1000
    with pytest.raises(ValueError, match="closed file"):
        print("a mistake of ours", file=said, flush=True)


def test_without_a_stream_lines_go_where_stderr_is_at_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A display that draws on the terminal puts a stream of its own there, and takes it away again."""
    lines, display, terminal = Lines(), io.StringIO(), io.StringIO()
    for stream in (display, terminal):
        monkeypatch.setattr(sys, "stderr", stream)
        print("broker lost", file=lines, flush=True)
    assert display.getvalue() == terminal.getvalue() == "broker lost\n"


PROGRAM = """
import sys
from services.bus import BusError, service
async def serve(bus):
    raise {}
service.run("agent", service.Common(sys.argv[1], "edge-0", json_logs=True, log_level="error"), serve)
"""


async def ended(*command: str, **variables: str) -> tuple[int, str]:
    """Exit code of a program and what it said on stderr."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**environment(), "COLUMNS": "200", "NO_COLOR": "1", **variables},
    )
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.parametrize("error", ["BusError('no more')", "ValueError('no more')", "OSError('no more')"])
async def test_what_the_user_can_mend_is_one_line(error: str) -> None:
    async with launch() as running:
        code, said = await ended(sys.executable, "-c", PROGRAM.format(error), running.url(), R2F_LOG_LEVEL="error")
    assert (code, said) == (1, "agent: no more\n")


@pytest.mark.parametrize("error", ["KeyError('slot')", "RuntimeError('slot')", "ZeroDivisionError('slot')"])
async def test_a_mistake_of_ours_has_its_traceback_in_the_log(error: str) -> None:
    async with launch() as running:
        code, said = await ended(sys.executable, "-c", PROGRAM.format(error), running.url())
    assert code == 1
    *logged, last = said.splitlines()
    assert re.fullmatch(r"agent: \w+Error: '?slot'?", last)
    line = json.loads(logged[-1])
    assert line["level"] == "error"
    assert line["service"] == "agent"
    assert "in serve" in line["exception"]


@pytest.mark.parametrize("service", ["services.voter", "services.codec"])
async def test_patience(service: str) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    side = ("--side", "device") if service == "services.codec" else ()
    command = python(service, *side, "--broker", url, "--patience", "0.3", "--log-level", "error")
    code, said = await ended(*command)
    assert code == 1
    assert re.fullmatch(rf"[a-z-]+: broker {url} is unreachable for 0\.3 s: .*\n", said)
    assert (await ended(*command[:-4], R2F_PATIENCE="0.3", R2F_LOG_LEVEL="error")) == (code, said)


NOTHING = [("--patience", "0"), ("--patience", "nan"), ("--log-level", "loud"), ("--arena-mb", "-1")]
NO_BROKER = ["http://x", "mqtt://", "localhost:0", "mqtt://host:99999"]
NO_DEVICE = ["a/b", "", "x" * 65]


@pytest.fixture(scope="module")
def refused() -> dict[tuple[str, str], tuple[int, str]]:
    """What a voter ends with, by option and value."""
    starts = [*NOTHING, *(("--broker", broker) for broker in NO_BROKER), *(("--device", device) for device in NO_DEVICE)]
    return dict(zip(starts, one_after_another("services.voter", starts), strict=True))


@pytest.mark.parametrize(("option", "value"), NOTHING)
def test_options_that_mean_nothing(option: str, value: str, refused: dict[tuple[str, str], tuple[int, str]]) -> None:
    code, said = refused[option, value]
    assert code == 2
    assert option in said
    assert "Traceback" not in said


@pytest.mark.parametrize("broker", NO_BROKER)
def test_an_address_that_is_none(broker: str, refused: dict[tuple[str, str], tuple[int, str]]) -> None:
    said = f"voter: {broker} is no broker; write mqtt://host:port or mqtts://user@host:port\n"
    assert refused["--broker", broker] == (1, said)


async def test_an_address_that_is_none_of_a_process_of_its_own() -> None:
    code, said = await ended(*python("services.voter", "--broker", NO_BROKER[0]))
    assert (code, said.count("\n")) == (1, 1)


@pytest.mark.parametrize("device", NO_DEVICE)
def test_a_device_that_is_none(device: str, refused: dict[tuple[str, str], tuple[int, str]]) -> None:
    code, said = refused["--device", device]
    assert code == 1
    assert said.count("\n") == 1
    assert f"'{device}' is no name of a device" in said


async def test_the_level_of_the_log(tmp_path: Path) -> None:
    async def lines(level: str) -> list[str]:
        async with launch() as running, Bus(running.url(), "watch", "edge-0", passive=True) as watch:
            await watch.subscribe("state/voter")
            process = await asyncio.create_subprocess_exec(
                *python("services.voter", "--broker", running.url(), "--log-level", level, "--patience", "0.2"),
                stderr=asyncio.subprocess.PIPE,
                env=environment(),
            )
            await watch.receive(60)
        _, said = await asyncio.wait_for(process.communicate(), 60)
        return said.decode().splitlines()

    assert any("broker lost" in line for line in await lines("info"))
    assert len(await lines("error")) == 1


async def test_whether_messages_are_signed_is_said_once(tmp_path: Path) -> None:
    make_keys.make(tmp_path / "keys", ["edge-0"])
    program = PROGRAM.format("ValueError('no more')").replace("error", "info")
    async with launch() as running:
        _, without = await ended(sys.executable, "-c", program, running.url())
        _, with_key = await ended(sys.executable, "-c", program, running.url(), R2F_SIGNING_KEY_FILE=str(tmp_path / "keys"))
    assert [line.count("messages are not signed") for line in without.splitlines()] == [1, 0]
    assert [line.count("messages are signed") for line in with_key.splitlines()] == [1, 0]


def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "open").write_text(f"edge-0 {'0' * 64}\n")
    paths = [tmp_path, tmp_path / "none" / "file", Path("/proc/version")]
    given = [("--audit-log", path) for path in paths]
    given += [("--signing-key-file", path) for path in (*paths, tmp_path / "open")]
    found = one_after_another("services.voter", [(option, str(path)) for option, path in given])
    for (option, path), (code, said) in zip(given, found, strict=True):
        assert code == 1, option
        assert said.count("\n") == 1
        assert str(path) in said
