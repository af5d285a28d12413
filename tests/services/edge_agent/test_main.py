"""The agent's options: what cannot be used is said in one line, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    command = [sys.executable, "-m", "broker", "--port", "0", "--embedded"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        yield running.stdout.readline().split()[-1]
        running.terminate()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--accelerator", "tpu"], "accelerator 'tpu': expected simulated"),
        (["--accelerator", "json:loads"], "accelerator 'json:loads': "),
        (["--fault-model", "cosmic"], "fault model 'cosmic': expected soft, burst"),
        (["--mean", "red"], "--mean 'red': expected a number for each channel"),
        (["--image-size", "8x8"], "--image-size '8x8': expected HxWxC"),
        (["--classes", "nofile.txt"], "nofile.txt"),
        (["--array", "nofile.cfg"], "nofile.cfg"),
    ],
)
def test_one_line(options: list[str], said: str, broker: str) -> None:
    command = [sys.executable, "-m", "services.edge_agent", "--data", "digits", "--broker", broker, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("agent: ")
    assert said in last
    assert "Traceback" not in done.stderr
