"""Runs on a broker that others use too: a second device of one name, and a voter that is none of ours (docs/bus.md)."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from accelsim.datasets import load
from accelsim.faults import Rates
from broker.child import environment, python
from broker.launch import launch
from r2f import run
from r2f.display import Display
from r2f.memory import Shares
from r2f.pipeline import Program
from r2f.settings import Settings
from services.bus.messages import Progress
from services.scheme import Scheme
from services.trainer.core import result as results
from services.trainer.core.task import PAPER, Sgd
from tests.r2f import served

pytestmark = pytest.mark.timeout(240)

SETTINGS = Settings(
    network="digits_cnn",
    rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
    scheme=Scheme(protected=(0,)),
    iterations=3,
    sgd=Sgd(rate=0.02),
    recipe=PAPER,
    labels="device",
    evaluation_seeds=1,
    evaluation_samples=64,
    launch=True,
)


class Started(Display):
    """A display that has something done when the training has begun."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__(Console(quiet=True))
        self.then: Callable[[], None] | None = then

    def progress(self, message: Progress) -> None:
        if message.phase == "train" and self.then is not None:
            then, self.then = self.then, None
            then()


def execute(prepared: Path, folder: Path, then: Callable[[str], None] = lambda _: None) -> results.Result:
    """The run on a broker that runs already. ``then`` is called with its address when the training has begun."""
    shutil.copytree(prepared, folder)

    async def on_broker() -> None:
        async with launch() as running, asyncio.timeout(120):
            settings = msgspec.structs.replace(SETTINGS, broker=running.url())
            await run.execute(settings, folder, Started(lambda: then(running.url())))

    asyncio.run(on_broker())
    return results.read(folder)


@pytest.fixture(scope="module")
def prepared(prepare: Callable[[Settings, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "prepared"
    prepare(SETTINGS, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> results.Result:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    shutil.copytree(prepared, folder)
    return served.retrained(folder)


def test_a_second_device_of_one_name_ends_with_one_line(prepared: Path, undisturbed: results.Result, tmp_path: Path) -> None:
    data = load("digits")
    np.savez(
        tmp_path / "other.npz",
        train_images=255 - data.train_images,
        train_labels=(data.train_labels + 1) % 10,
        test_images=255 - data.test_images,
        test_labels=(data.test_labels + 1) % 10,
    )
    twins: list[subprocess.Popen[str]] = []

    def second(broker: str) -> None:
        options = ("--data", str(tmp_path / "other.npz"), "--broker", broker, "--log-level", "error")
        command = python("services.edge_agent", *options)
        twins.append(subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True))
        # The run may be done before the twin is up. Its services and its broker stay until this returns.
        twins[0].wait(timeout=100)

    result = execute(prepared, tmp_path / "run", second)
    (twin,) = twins
    _, said = twin.communicate(timeout=120)
    assert twin.returncode == 1
    assert re.fullmatch(r"agent: another agent called edge-0 is on this broker \(boot \w+\): .*--device\n", said), (
        "one line that says what to do"
    )
    assert result == undisturbed


def test_the_documented_voter_does_in_place_of_ours(
    prepared: Path, undisturbed: results.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "bus.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "voter_by_hand.py").write_text(found[1])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("R2F_SHM_DIR", "")
    ours = run.service_programs

    def services(settings: Settings, memory: Shares, device_broker: str, server_broker: str) -> list[Program]:
        host, port = device_broker.removeprefix("mqtt://").split(":")
        theirs = Program("voter", "voter_by_hand", (host, port, settings.device))
        return [
            theirs if program.name == "voter" else program for program in ours(settings, memory, device_broker, server_broker)
        ]

    monkeypatch.setattr(run, "service_programs", services)
    assert execute(prepared, tmp_path / "run") == undisturbed
