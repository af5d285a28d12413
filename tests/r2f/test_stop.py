"""``r2f stop``, on the command line and over Mosquitto: the run ends in order, and ends with the same model when it goes on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from accelsim.datasets import load
from accelsim.int8 import storage
from broker.launch import find_mosquitto, launch
from r2f import folders, inprocess, run
from r2f import stopping as by_command
from r2f.cli import app
from r2f.display import Display
from r2f.settings import Settings, parse
from services import stopping
from services.bus import Bus
from services.bus.messages import Progress, Stop, Stopping
from services.bus.service import STOPPED, Stopped
from services.trainer import waiting
from services.trainer.core import checkpoint, ledger
from services.trainer.core import job as jobs
from services.trainer.core import result as results
from services.trainer.remote import DeviceError
from services.trainer.table1 import serving

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 120
OF_SEVERAL = ("--device", "a,b", "--iterations", "60", "--hosts", "1", "--codecs", "1")
"""With two devices an iteration takes so much longer that there is as much time to stop it in."""
RETRAIN = [
    "retrain", "--ber", "1e-3", "--iterations", str(ITERATIONS), "--batch", "16", "--eval-seeds", "2", "--eval-samples", "64",
    "--selection-samples", "64", "--accumulate", "2", "--checkpoint-every", "1000",
]  # fmt: skip

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed (apt-get install mosquitto)"),
]


def ran(*arguments: str) -> Result:
    """A command in this process, which has imported all that it takes: a run is soon over."""
    return CliRunner().invoke(app, [*arguments])


@contextmanager
def going(out: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run below ``out`` that has done some iterations, and its folder."""
    log = out.with_suffix(".log")
    with log.open("w") as said, subprocess.Popen(
        [sys.executable, "-P", "-m", "r2f", *RETRAIN, "--out", str(out), *arguments], stdout=said, stderr=said, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        try:
            while process.poll() is None:
                found = [path.parent for path in out.glob("*/run.toml")]
                rows = [*out.glob(f"*/{results.PROGRESS}"), *out.glob(f"*/*/{results.PROGRESS}")]
                if found and rows and all(len(path.read_text().splitlines()) >= 2 for path in rows):
                    break
                time.sleep(0.02)
            assert process.poll() is None, log.read_text()
            yield process, found[0]
            process.wait(240)
        finally:
            process.terminate()


def test_a_run_that_was_stopped_ends_with_the_model_of_one_that_was_not(weights: str, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    with going(out, "--weights", weights) as (process, folder):
        stopped = ran("stop", "--out", str(out), "--by", "ada")
    assert (stopped.exit_code, stopped.stderr) == (0, "")
    assert stopped.stdout.splitlines() == ["edge-0: the trainer ends after what is under way", "stopped"]
    assert process.returncode == STOPPED
    said = (tmp_path / "runs.log").read_text()
    assert "stopped by ada after" in said
    assert f"--resume {folder}" in said
    assert "Traceback" not in said

    done = len(ledger.read(folder / results.PROGRESS))
    assert 2 <= done < ITERATIONS, "in its middle"
    assert done % 2 == 0, "not while gradients gather"
    assert (folder / checkpoint.FILE).exists(), "though none was due"
    assert results.stopped(folder) == f"stopped by ada after {done} iterations"
    one = folders.look(folder)
    assert (one.state, one.why) == (
        "stopped",
        f"stopped by ada after {done} iterations; go on with: r2f retrain --resume {folder}",
    )
    assert ran("runs", str(out)).stdout.count("stopped by ada") == 1

    again = ran("retrain", "--resume", str(folder))
    assert again.exit_code == 0, again.stderr
    todo, network = jobs.read(folder), storage.load(folder / jobs.NETWORK)
    undisturbed = inprocess.retrain(network, load("digits"), todo)
    assert results.read(folder).model_sha256 == storage.digest(undisturbed.network)
    assert results.stopped(folder) == ""
    assert [row.iteration for row in ledger.read(folder / results.PROGRESS)] == list(range(ITERATIONS))


def test_of_several_devices_that_share_a_model(weights: str, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    with going(out, "--weights", weights, *OF_SEVERAL, "--fleet", "common") as (process, folder):
        stopped = ran("stop", str(folder), "--by", "ada")
    assert stopped.exit_code == 0, stopped.stderr
    assert sorted(stopped.stdout.splitlines()[:2]) == [f"{one}: the trainer ends after what is under way" for one in "ab"]
    assert process.returncode == STOPPED, (tmp_path / "runs.log").read_text()
    assert "stopped by ada" in results.stopped(folder)
    assert not any((folder / one / waiting.FAILED).exists() for one in "ab")
    assert folders.look(folder).state == "stopped"
    stopped = ran("stop", "--out", str(out)).stderr
    assert f"the newest run, {folder.name}, is stopped (r2f retrain --resume {folder} goes on with it)" in stopped
    again = ran("retrain", "--resume", str(folder))
    assert again.exit_code == 0, again.stderr
    assert folders.look(folder).state == "done"
    assert f"no run is going on below {out}: the newest run, {folder.name}, is done" in ran("stop", "--out", str(out)).stderr
    assert ran("stop", str(folder)).stderr.endswith("the run is not going on, it is done\n")


def test_one_of_several_devices_with_a_model_each(weights: str, tmp_path: Path) -> None:
    """The other one goes on to its end; what is left is the one that was stopped."""
    out = tmp_path / "runs"
    with going(out, "--weights", weights, *OF_SEVERAL, "--fleet", "own") as (process, folder):
        broker, session = (folder / folders.BROKER).read_text().strip(), jobs.read(folder).session
        assert asyncio.run(stopping.stop(broker, ["a"], session, "ada", lambda _: None, wait=True))
    assert process.returncode == STOPPED, (tmp_path / "runs.log").read_text()
    assert results.stopped(folder / "a").startswith("stopped by ada after")
    assert results.stopped(folder).startswith("a: stopped by ada after")
    assert [waiting.outcome(folder / one) for one in "ab"] == [None, ""]
    assert [folders.look(folder / one).state for one in "ab"] == ["stopped", "done"]


def test_what_is_no_run_that_goes_on(weights: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no run")
    for arguments, words in (
        (["--out", str(tmp_path)], "no run is going on below"),
        ([str(tmp_path)], "the run is not going on, or is still being prepared"),
        ([str(tmp_path / "nowhere")], "has no broker now"),
        ([str(tmp_path / "notes.txt")], "has no broker now"),
        (["--out", str(tmp_path), "--by", ""], "--by ''"),
        (["--out", str(tmp_path), "--by", "x" * 65], "printable characters"),
        (["--out", str(tmp_path), "--by", "a\nb"], "printable characters"),
    ):
        refused = ran("stop", *arguments)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr.startswith("r2f: ")
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


class Asking(Display):
    """A display that has the run stopped, by a thread of its own, when the trainer has come to a phase."""

    def __init__(self, folder: Path, phase: str) -> None:
        super().__init__(Console(quiet=True))
        self.folder, self.phase = folder, phase
        self.asking: threading.Thread | None = None
        self.found: list[bool] = []

    def progress(self, message: Progress) -> None:
        if message.phase == self.phase and self.asking is None:
            self.asking = threading.Thread(target=self.ask)
            self.asking.start()

    def ask(self) -> None:
        self.found.append(by_command.stop(self.folder, self.folder.parent, None, "ada", lambda _: None, wait=True))


@pytest.mark.parametrize("phase", ["before", "select"])
def test_in_an_evaluation(phase: str, prepare: Callable[[Settings, Path], None], tmp_path: Path) -> None:
    """It does not go on to the end of the evaluation, which is then done again."""
    folder = tmp_path / "run"
    samples, seeds = (300, 30) if phase == "before" else (32, 1)
    settings = parse(
        {"ber": 1e-3, "iterations": 2, "batch": 16, "selection_samples": 200, "eval_samples": samples, "eval_seeds": seeds}
    )
    prepare(settings, folder)
    live = Asking(folder, phase)
    with pytest.raises(
        Stopped, match="stopped by ada " + ("in the evaluation before" if phase == "before" else "after 0 iter")
    ):
        run.go_on(folder, live)
    assert live.asking is not None
    live.asking.join(30)
    assert live.found == [True]
    assert (results.read(folder).faulty_before is None) == (phase == "before")
    assert ledger.read(folder / results.PROGRESS) == []


async def test_a_stop_that_makes_no_sense_is_dropped() -> None:
    """Of another run, by nobody, or by control characters; the next one counts, and the first who asked is named."""
    async with launch() as broker, Bus(broker.url(), "trainer", "d") as bus, serving(bus, "s") as server:
        with pytest.raises(DeviceError):
            await server.ready("d", 0.05)  # it listens
        async with Bus(broker.url(), "someone", "d", passive=True) as other:
            await other.subscribe("event/stopping")
            for session, by in (("other", "ada"), ("s", ""), ("s", "a\x1b[2J"), ("s", "a\nb"), ("s", "ada"), ("s", "bob")):
                await other.publish("server/stop", Stop(session=session, by=by))
            found = [(await other.receive(10))[1] for _ in range(2)]
        assert [(one.session, one.by, one.ended) for one in found if isinstance(one, Stopping)] == [("s", "ada", False)] * 2
        assert server.stopped_by("d") == "ada"
        assert server.stopped_by("e") == ""
        assert bus.counts["bad"] == 3


def test_a_trainer_that_dies_meanwhile_is_not_called_done(
    prepare: Callable[[Settings, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    prepare(parse({"ber": 1e-3}), folder)
    (folder / folders.BROKER).write_text("mqtt://127.0.0.1:1\n")

    async def gone(*_: object, **__: object) -> bool:
        return False

    monkeypatch.setattr(stopping, "stop", gone)
    with pytest.raises(ValueError, match="gone before it could stop"):
        by_command.stop(folder, tmp_path, None, "ada", print, wait=True)


async def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "HEARD_S", 0.3)
    async with launch() as broker:
        with pytest.raises(stopping.NotStopped, match=r"no trainer of run r1 answered within 0\.3 s"):
            await stopping.stop(broker.url(), ["d"], "r1", "ada", lambda _: None, wait=True)
        async with Bus(broker.url(), "trainer", "d") as other:  # with a run of its own
            await other.subscribe("server/stop")
            with pytest.raises(stopping.NotStopped, match="answered"):
                await stopping.stop(broker.url(), ["d"], "r1", "ada", lambda _: None, wait=True)
            _, asked = await other.receive(5)
            assert asked == Stop(session="r1", by="ada", origin=asked.origin, n=asked.n)


async def test_a_run_that_is_done_before() -> None:
    """Its trainer was there, says nothing to it, and is gone; or has heard, and is done all the same."""
    async with launch() as broker:
        for answers in (False, True):
            heard: list[str] = []
            async with Bus(broker.url(), "trainer", "d") as trainer:
                await trainer.subscribe("server/stop")
                asking = asyncio.create_task(stopping.stop(broker.url(), ["d"], "r", "ada", heard.append, wait=True))
                await trainer.receive(10)
                if answers:
                    await trainer.publish("event/stopping", Stopping(session="r", by="ada"))
                await trainer.flush()
            assert await asyncio.wait_for(asking, 20) is False
            assert heard == (["d"] if answers else [])
