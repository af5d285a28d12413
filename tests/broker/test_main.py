"""``python -m broker``: it outlives the end of the broker itself, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import accounts as listed
from broker.launch import find_mosquitto
from services.bus import Bus, BusError
from services.bus.messages import Ack

ROOT = Path(__file__).resolve().parents[2]
KINDS = [
    pytest.param([], id="mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")),
    pytest.param(["--embedded"], id="embedded"),
]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the broker's own process in /proc")


@contextlib.contextmanager
def broker(temporary: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command, with a folder for temporary files of its own."""
    temporary.mkdir()
    command = [sys.executable, "-m", "broker", "--port", "0", *arguments]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().split()[-1]


def itself(process: subprocess.Popen[str]) -> int:
    """Process id of the broker that the command runs."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize("arguments", KINDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_broker_that_is_killed_comes_back_as_it_was(
    arguments: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    """On its port, with its accounts, which the embedded one has not; what clients had under way arrives."""
    listed.write_accounts(tmp_path / "accounts", listed.make_accounts())
    device, server, _ = listed.read_accounts(tmp_path / "accounts")
    known = arguments or ["--accounts", str(tmp_path / "accounts")]
    with broker(tmp_path / "tmp", *known) as process:
        url = address(process)
        where = url.removeprefix("mqtt://")
        async with (
            Bus(f"mqtt://device:{device.password}@{where}", "agent", "d") as agent,
            Bus(f"mqtt://server:{server.password}@{where}", "trainer", "d") as trainer,
        ):
            await trainer.subscribe("up/ack")
            got = []
            for seq in range(3):
                await agent.publish("up/ack", Ack(session="s", of="mode", seq=seq, ok=True))
                if seq == 0:
                    got.append(await trainer.receive(60))  # so that it knows of the sender whose rest it is to ask for
                if seq == 1:
                    os.kill(itself(process), number)
            got += [await trainer.receive(60) for _ in range(2)]
            assert [m.seq for _, m in got if isinstance(m, Ack)] == [0, 1, 2]
            assert address(process) == url
            if not arguments:
                with pytest.raises(BusError, match="refuse"):
                    async with Bus(f"mqtt://device:wrong@{where}", "agent", "other", give_up_s=60):
                        pass
        process.terminate()
        assert process.stderr is not None
        how = f"was killed by {number.name}" if number == signal.SIGKILL else "was told to end"
        assert f"{how}; starting it again" in process.stderr.read()


@pytest.mark.parametrize("arguments", KINDS)
def test_a_broker_that_is_killed_again_and_again_is_given_up(arguments: list[str], tmp_path: Path) -> None:
    code = f"import sys, broker.__main__ as b; b.RESTARTS = 1; sys.argv = ['broker', '--port', '0', *{arguments}]; b.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(2):
            address(process)
            os.kill(itself(process), signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.splitlines()[-1].endswith("was ended 2 times, each soon after its start")


@pytest.mark.parametrize("arguments", KINDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_in_the_temporary_folder(arguments: list[str], number: signal.Signals, tmp_path: Path) -> None:
    """Not even while it runs: no password lies on the disk that was not there before."""
    with broker(tmp_path / "tmp", *(arguments or ["--accounts", str(tmp_path / "accounts")])) as process:
        address(process)
        child = itself(process)
        assert list((tmp_path / "tmp").iterdir()) == []
        assert (
            arguments
            or listed.read_accounts(tmp_path / "accounts")[0].password not in Path(f"/proc/{child}/cmdline").read_text()
        )
        process.send_signal(number)
        process.wait(timeout=120)
        # What is ended by a signal says so: whoever watches it starts it again.
        assert process.returncode == (0 if number == signal.SIGINT else -number)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline, "the broker is still there"
            time.sleep(0.02)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("arguments", KINDS)
def test_a_frozen_broker_leaves_its_port_when_its_launcher_is_killed(arguments: list[str], tmp_path: Path) -> None:
    """Else whoever starts the next one there finds the port taken, and the run ends."""
    with broker(tmp_path / "tmp", *arguments) as process:
        port = address(process).rpartition(":")[2]
        os.kill(itself(process), signal.SIGSTOP)
        process.kill()
    with broker(tmp_path / "again", *arguments, "--port", port) as process:
        assert address(process).endswith(f":{port}")


@pytest.mark.parametrize("arguments", KINDS)
def test_a_broker_that_cannot_start_says_why(arguments: list[str], tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none.pem")
    with broker(tmp_path / "tmp", "--ca", nowhere, "--certificate", nowhere, "--key", nowhere, *arguments) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.count("\n") == 1, said
    assert said.startswith("broker: ")
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "99999"], "'99999' is no port"),
        (["--port", "-1"], "'-1' is no port"),
        (["--port", "0", "--bridge-to", "x"], "'x' is no host:port"),
        (["--port", "0", "--embedded", "--bridge-to", "h:1"], "only mosquitto can bridge two brokers; leave out --embedded"),
        (["--port", "0", "--ca", "x"], "TLS needs --ca, --certificate and --key together"),
        (["--port", "0", "--host", "nohost.invalid"], "no broker can listen on nohost.invalid"),
        (["--port", "0", "--accounts", "/"], "Is a directory: '/'"),
        (
            ["--port", "0", "--identity", "/nowhere"],
            "/nowhere/certificate.pem: No such file or directory; the folder of an identity",
        ),
        (["--port", "0", "--identity", "x", "--ca", "x"], "leave out --ca, --certificate and --key"),
        (["--port", "0", "--bridge-identity", "x"], "--bridge-identity: say where to, with --bridge-to"),
        (["--port", "0", "--bridge-to", "h:1", "--bridge-identity", "/"], "/certificate.pem: No such file or directory"),
        (["--port", "0", "--max-connections", "0"], "'0' is no number from 1 to"),
        (["--port", "0", "--memory-mb", "-1"], "'-1' is no number from 1 to"),
        (["--port", "0", "--memory-mb", "1e3"], "'1e3' is no number from 1 to"),
        (["--port", "0", "--embedded", "--accounts", "x"], "only mosquitto keeps accounts"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "broker", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )  # in a folder of its own: accounts that are not there are made
    assert not (ROOT / "x").exists(), "no passwords among the sources"
    assert done.returncode in (1, 2)
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
