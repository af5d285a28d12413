"""The agent's options: what cannot be used is said in one line, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.programs import one_after_another

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    command = [sys.executable, "-m", "broker", "--port", "0", "--embedded"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        yield running.stdout.readline().split()[-1]
        running.terminate()


BAD: dict[tuple[str, str], str] = {
    ("--accelerator", "tpu"): "accelerator 'tpu': expected simulated",
    ("--accelerator", "json:loads"): "accelerator 'json:loads': ",
    ("--fault-model", "cosmic"): "fault model 'cosmic': expected soft, burst",
    ("--mean", "red"): "--mean 'red': expected a number for each channel",
    ("--image-size", "8x8"): "--image-size '8x8': expected HxWxC",
    ("--classes", "nofile.txt"): "nofile.txt",
    ("--array", "nofile.cfg"): "nofile.cfg",
}


def one_line(code: int, stderr: str, said: str) -> None:
    assert code == 1
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("agent: ")
    assert said in last
    assert "Traceback" not in stderr


@pytest.fixture(scope="module")
def ended(broker: str) -> dict[tuple[str, str], tuple[int, str]]:
    starts = [("--data", "digits", "--broker", broker, *options) for options in BAD]
    return dict(zip(BAD, one_after_another("services.edge_agent", starts), strict=True))


@pytest.mark.parametrize("options", BAD, ids=" ".join)
def test_one_line(options: tuple[str, str], ended: dict[tuple[str, str], tuple[int, str]]) -> None:
    one_line(*ended[options], BAD[options])


def test_one_line_of_a_process_of_its_own(broker: str) -> None:
    options, said = next(iter(BAD.items()))
    command = [sys.executable, "-m", "services.edge_agent", "--data", "digits", "--broker", broker, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    one_line(done.returncode, done.stderr, said)
