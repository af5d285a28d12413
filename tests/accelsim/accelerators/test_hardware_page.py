"""docs/hardware.md: its board, held to the contract, in a run whose device time is the board's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="pip install 'r2f[onnx]' for the board of the page")

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "hardware.md"


def test_the_page_runs(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (board,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_board.py").write_text(board)
    contract, retrain = (
        block for marked, block in re.findall(r"<!-- (.*?) -->\n```sh\n(.*?)```", text, re.DOTALL) if "run by" in marked
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def ran(line: str) -> str:
        program, *arguments = shlex.split(line)
        command = [sys.executable, *arguments] if program == "python" else [sys.executable, "-m", "r2f", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ran(contract.strip())
    ran(retrain.strip())
    (folder,) = (tmp_path / "runs").iterdir()
    events = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert [one["mismatched"] for one in events] == [0, 0, 0]
    measured = sum(one["device_s"]["forward"] for one in events)
    # The model says 1.8 ms an iteration, and always the same.
    assert measured > 0
    assert len({one["device_s"]["forward"] for one in events}) == 3
