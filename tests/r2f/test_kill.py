"""Kill any one process in the middle of a run: the run finishes, and with the same model as an undisturbed one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from broker.launch import find_mosquitto
from r2f import run
from r2f.live import Live
from r2f.pipeline import Pipeline
from services.bus.messages import FaultRates, Progress
from services.trainer import ledger, training
from services.trainer.optimiser import Sgd

pytestmark = pytest.mark.timeout(240)

SETTINGS = run.Settings(
    network="digits_cnn",
    rates=FaultRates(input=1e-3, weight=1e-3, output=1e-3),
    iterations=14,
    sgd=Sgd(rate=0.02),
    evaluation_seeds=2,
    evaluation_samples=64,
    checkpoint_every=4,
    embedded=True,
)


class Killer(Live):
    """A live display that kills one process, once, when the training has come this far."""

    def __init__(self, victim: str | None) -> None:
        super().__init__(Console(quiet=True))
        self.victim = victim
        self.pipeline: Pipeline | None = None
        self.restarts: list[str] = []

    def progress(self, message: Progress) -> None:
        if message.phase == "train" and message.step >= 6 and self.victim and self.pipeline:
            os.kill(self.pipeline.pids[self.victim], signal.SIGKILL)
            self.victim = None

    def restarted(self, name: str) -> None:
        self.restarts.append(name)

    def started(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "prepared"
    with Live(Console(quiet=True)) as live:
        run.prepare(SETTINGS, folder, live)
    return folder


def execute(prepared: Path, folder: Path, killer: Killer, settings: run.Settings = SETTINGS) -> training.Result:
    shutil.copytree(prepared, folder)
    asyncio.run(run.execute(settings, folder, killer))
    return msgspec.json.decode((folder / training.RESULT).read_bytes(), type=training.Result)


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> training.Result:
    return execute(prepared, tmp_path_factory.mktemp("undisturbed") / "run", Killer(None))


@pytest.mark.parametrize("victim", ["agent", "voter", "codec-device", "codec-server", "trainer", "broker"])
def test_a_killed_process_changes_nothing(
    victim: str, prepared: Path, undisturbed: training.Result, tmp_path: Path
) -> None:
    killer = Killer(victim)
    result = execute(prepared, tmp_path / "run", killer)
    assert killer.restarts == [victim]
    assert result == undisturbed
    rows = ledger.read(tmp_path / "run" / training.PROGRESS)
    assert [row.iteration for row in rows] == list(range(SETTINGS.iterations))


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed (apt-get install mosquitto)")
def test_mosquitto_killed(prepared: Path, undisturbed: training.Result, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, embedded=False)
    killer = Killer("broker")
    assert execute(prepared, tmp_path / "run", killer, settings) == undisturbed
    assert killer.restarts == ["broker"]


def test_resume_after_everything_died(prepared: Path, undisturbed: training.Result, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    class Stop(Killer):
        def progress(self, message: Progress) -> None:
            if message.phase == "train" and message.step >= 6:
                self.task.cancel()

    async def interrupted() -> None:
        stop = Stop(None)
        stop.task = asyncio.create_task(run.execute(SETTINGS, folder, stop))
        with pytest.raises(asyncio.CancelledError):
            await stop.task

    shutil.copytree(prepared, folder)
    asyncio.run(interrupted())
    assert not msgspec.json.decode((folder / training.RESULT).read_bytes(), type=training.Result).after
    asyncio.run(run.execute(SETTINGS, folder, Killer(None)))
    assert msgspec.json.decode((folder / training.RESULT).read_bytes(), type=training.Result) == undisturbed
