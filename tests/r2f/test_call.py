"""``r2f.retrain``, the command as a Python call: a device of one's own, from any folder, stopped and gone on with."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import r2f
from r2f import folders, run
from r2f import settings as settings_file
from r2f.cli import app
from r2f.display import Display
from r2f.settings import Settings, parse
from services.bus.messages import Progress

MINE = """
import numpy as np
class Harmless:
    def positions(self, generator, bits, rate):
        return np.empty(0, np.int64)
"""


class StopError(Exception):
    """What a caller raises who has seen enough."""


def test_a_fault_model_of_ones_own_from_any_folder_stopped_by_the_caller_and_gone_on_with(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_faults.py").write_text(MINE)
    seen: list[tuple[str, int, int]] = []

    def enough(message: Progress) -> None:
        seen.append((message.phase, message.step, message.steps))
        if message.phase == "train":
            raise StopError(str(message.step))

    monkeypatch.chdir(tmp_path)
    with pytest.raises(StopError):
        r2f.retrain(
            out="runs", on_progress=enough, weights=weights, modules="mine", fault_model="my_faults:Harmless", ber=0.05,
            activations="signed", iterations=6, eval_seeds=2, eval_samples=32, embedded=True, checkpoint_every=1,
        )  # fmt: skip
    assert ("before", 2, 2) in seen
    assert [phase for phase, *_ in seen].index("train") == len(seen) - 1, "nothing is said to a caller who is gone"
    (found,) = folders.all_runs(tmp_path / "runs")
    assert found.state == "stopped"

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with Display(Console(quiet=True)) as display:
        report = run.go_on(found.folder, display)
    assert report.folder == str(found.folder)
    assert len(report.loss) == 6
    # At such a rate every other model of faults would leave nothing of the accuracy.
    assert report.accuracy.faulty_before.values == report.accuracy.int8.values * 2
    assert report.accuracy.int8.mean > 90
    assert folders.look(found.folder).state == "done"


async def test_where_an_event_loop_runs_already_the_run_has_a_thread_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(settings: Settings, folder: Path, display: Display) -> tuple[str, Settings]:
        asyncio.run(asyncio.sleep(0))
        display.progress(Progress(session="s", phase="train", step=1, steps=2, value=0.5))
        settings_file.write(folder, settings)
        return threading.current_thread().name, settings

    monkeypatch.setattr(run, "start", start)
    seen: list[Progress] = []
    thread, settings = r2f.retrain(out=tmp_path, on_progress=seen.append, lr=0.5)  # type: ignore[misc]
    assert thread != threading.current_thread().name
    assert [message.step for message in seen] == [1]
    (folder,) = tmp_path.iterdir()
    path = folder / settings_file.FILE
    assert r2f.retrain(out=tmp_path, config=path, batch=3)[1] == parse({"batch": 3}, settings)  # type: ignore[index]


def test_what_means_nothing_is_a_value_error_and_leaves_nothing(tmp_path: Path) -> None:
    for settings, said in (
        ({"batch": 0}, "--batch 0"),
        ({"lr": 1e30}, "<= 100"),
        ({"wieghts": "w"}, "wieghts"),
        ({"weights": "none"}, "none"),
    ):
        with pytest.raises(ValueError, match=said):
            r2f.retrain(out=tmp_path / "runs", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("own", [False, True])
def test_a_broker_and_its_password_are_given_again_where_a_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    used: list[str | None] = []

    async def execute(settings: Settings, folder: Path, display: Display) -> None:
        used.append(settings.broker)
        raise ValueError("far enough")

    monkeypatch.setattr(run, "execute", execute)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        at = f"127.0.0.1:{listening.getsockname()[1]}"
        settings_file.write(tmp_path, settings_file.resolved(parse({} if own else {"broker": f"mqtt://me:secret@{at}"})))
        url = f"mqtt://me:secret@{at}"
        result = CliRunner().invoke(app, ["retrain", "--resume", str(tmp_path)], env={"R2F_BROKER": url})
    assert "far enough" in result.stderr
    assert used == [None if own else url], "a run with a broker of its own keeps it"
