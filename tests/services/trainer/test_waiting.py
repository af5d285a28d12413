"""Runs that wait for a trainer: which is next, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from r2f import run
from services.bus.service import Stopped
from services.trainer import waiting
from services.trainer.core import result

ROOT = Path(__file__).resolve().parents[3]


def make(runs: Path, name: str, found: str = "") -> Path:
    folder = runs / name
    folder.mkdir()
    (folder / waiting.READY).write_text("{}")
    if found:
        (folder / "result.json").write_text(found)
    return folder


def test_next_is_the_first_that_is_neither_done_nor_given_up_nor_stopped(tmp_path: Path) -> None:
    stopped = make(tmp_path, "aa", '{"int8":[98.0],"before":[80.0]}')
    waiting.stop(stopped, "stopped by ada after 3 iterations")
    assert (waiting.outcome(stopped), result.stopped(stopped)) == (None, "stopped by ada after 3 iterations")
    done = make(tmp_path, "a", '{"model_sha256":"ff","after":[1.0]}')
    failed, half, fresh = make(tmp_path, "b"), make(tmp_path, "c", '{"int8":[98.0],"before":[80.0]}'), make(tmp_path, "d")
    (tmp_path / "0-not-ready").mkdir()
    waiting.give_up(failed, ValueError("the data has 3 channels"))
    assert [waiting.outcome(folder) for folder in (done, failed, half, fresh)] == ["", "the data has 3 channels", None, None]
    assert waiting.next_run(tmp_path) == half


def test_next_waits_for_a_run_to_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_S", 0.01)
    late = threading.Thread(target=lambda: (time.sleep(0.05), make(tmp_path, "late")))
    late.start()
    assert waiting.next_run(tmp_path) == tmp_path / "late"
    late.join()


def test_a_folder_is_one_trainers(tmp_path: Path) -> None:
    """The second gets one line and touches nothing; what waits for runs passes over it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / waiting.READY).write_text("")
    with waiting.alone(tmp_path / "a"):
        before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
        ended = subprocess.run(
            [sys.executable, "-m", "services.trainer", "--run", str(tmp_path / "a")],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert "another trainer works on this run" in ended.stderr
        assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / waiting.READY).write_text("")
        assert waiting.next_run(tmp_path) == tmp_path / "b"
    assert waiting.next_run(tmp_path) == tmp_path / "a"


async def test_a_trainer_elsewhere_was_stopped(tmp_path: Path) -> None:
    """Whoever waits for it says who did that, and does not call it an error of the trainer's."""
    waiting.stop(tmp_path, "stopped by ada after 3 iterations")
    with pytest.raises(Stopped, match=r"^stopped by ada after 3 iterations$"):
        await run._elsewhere(tmp_path)
