"""What every service's program does: options, one line where it cannot go on, a traceback in the log for a mistake of ours."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from broker.child import environment, python
from broker.launch import free_port, launch
from services.bus import Bus

PROGRAM = """
import sys
from services.bus import BusError, service
async def serve(bus):
    raise {}
service.run("agent", service.Common(sys.argv[1], "edge-0", json_logs=True), serve)
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


@pytest.mark.parametrize(
    ("option", "value"), [("--patience", "0"), ("--patience", "nan"), ("--log-level", "loud"), ("--arena-mb", "-1")]
)
async def test_options_that_mean_nothing(option: str, value: str) -> None:
    code, said = await ended(*python("services.voter", option, value))
    assert code == 2
    assert option in said
    assert "Traceback" not in said


@pytest.mark.parametrize("broker", ["http://x", "mqtt://", "localhost:0", "mqtt://host:99999"])
async def test_an_address_that_is_none(broker: str) -> None:
    code, said = await ended(*python("services.voter", "--broker", broker))
    assert code == 1
    assert said == f"voter: {broker} is no broker; write mqtt://host:port or mqtts://user@host:port\n"


@pytest.mark.parametrize(("device", "named"), [("a/b", "'a/b'"), ("", "''"), ("x" * 65, "x" * 65)])
async def test_a_device_that_is_none(device: str, named: str) -> None:
    code, said = await ended(*python("services.voter", "--device", device))
    assert code == 1
    assert said.count("\n") == 1
    assert f"{named!s} is no name of a device" in said or f"'{named}' is no name of a device" in said


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
