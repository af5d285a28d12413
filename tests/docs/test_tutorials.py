"""tutorial-photos.md and tutorial-research.md from top to bottom, as a reader pastes them, but with fewer iterations."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from r2f import folders
from r2f.cli import app

ROOT = Path(__file__).resolve().parents[2]


def blocks(name: str) -> list[tuple[str, str, str]]:
    """(file, language, text) of what is run; the file is the last one named in front of it."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"<!-- run by tests/docs/test_tutorials.py -->\n```(\w+)\n(.*?)```", text, re.DOTALL):
        named = re.findall(r"`(\w+\.py)`", text[: match.start()])
        found.append((named[-1] if named else "", match[1], match[2]))
    return found


@pytest.mark.timeout(280)
def test_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts and the run as processes; commands of a moment in this one, which has imported all that they take."""
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))), "OMP_NUM_THREADS": "1"}
    done: list[str] = []
    for file, language, text in blocks("tutorial-photos.md"):
        if language == "python":
            (tmp_path / file).write_text(text.replace('("train", 200), ("test", 40)', '("train", 40), ("test", 10)'))
            continue
        for line in text.splitlines():
            line = line.replace("--iterations 120", "--iterations 4 --eval-seeds 1 --selection-samples 16")
            if "RUN" in line:
                line = line.replace("RUN", str(folders.all_runs(tmp_path / "runs")[-1].folder))
            program, *arguments = shlex.split(line)
            if program == "r2f" and arguments[0] != "retrain":
                said = CliRunner().invoke(app, arguments)
                assert said.exit_code == 0, f"{line}\n{said.output}"
                done.append(said.stdout)
                continue
            command = [sys.executable, *([] if program == "python" else ["-m", "r2f"]), *arguments]
            ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
            done.append(ran.stdout)
    assert "as in the paper, faulty" in "".join(done)
    assert "stripes" in done[-3] or "box" in done[-3]
    assert (tmp_path / "shapes.h").read_text().startswith("/* shapes:build")


@pytest.mark.timeout(280)
def test_research(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {"ITERATIONS": 3, "__name__": "tutorial"}
    for _, language, text in blocks("tutorial-research.md"):
        if language == "python":
            exec(compile(text, "tutorial-research.md", "exec"), scope)
    said = capsys.readouterr().out
    assert len(re.findall(r"^ +[\d.e-]+ +\d+\.\d ± ", said, re.MULTILINE)) == 4
    assert re.search(r"^paper +\d", said, re.MULTILINE)
    assert re.search(r"^ours +\d.*MB on the link", said, re.MULTILINE)
