"""A broker of each kind for the contract suite; the Mosquitto half skips, and says so, where it is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.launch import find_mosquitto

ROOT = Path(__file__).resolve().parents[3]
_names = iter(range(10**6))


@pytest.fixture
def device() -> str:
    """A device of its own for each test: they share a broker, and retained messages stay."""
    return f"d{os.getpid()}-{next(_names)}"


@pytest.fixture(scope="session", params=["mosquitto", "embedded"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which broker a test of the contract runs on: each test runs on both."""
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto): its half of the contract suite is skipped")
    return str(request.param)


@pytest.fixture(scope="session")
def broker_url(kind: str) -> Iterator[str]:
    """A broker that all tests of one kind share; started by its own command line."""
    command = [sys.executable, "-m", "broker", "--port", "0", *(["--embedded"] if kind == "embedded" else [])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        assert said, "the broker ended instead of saying where it listens"
        assert said[0] == kind
        yield said[-1]
        process.terminate()
