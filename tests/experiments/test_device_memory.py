"""Memory of processes as the table says it: whose, which kind, and when."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from experiments import device_memory
from experiments.device_memory import Memory

HOLDS = """
import mmap, sys
print(flush=True)
sys.stdin.readline()
kinds = (mmap.MAP_PRIVATE, 48), (mmap.MAP_SHARED, 24)
held = [mmap.mmap(-1, size << 20, kind | mmap.MAP_ANONYMOUS) for kind, size in kinds]
for part in held:
    part.write(b"x" * len(part))
print(flush=True)
sys.stdin.readline()
"""


def test_memory_is_of_its_kind() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = []
        for _ in range(2):
            process.stdout.readline()
            seen.append(device_memory.memory(process.pid))
            process.stdin.write("\n")
            process.stdin.flush()
    before, after = seen
    assert before is not None
    assert after is not None
    assert after.anonymous - before.anonymous == pytest.approx(48, abs=4)
    assert after.shared - before.shared == pytest.approx(24, abs=1)
    assert after.held == after.anonymous + after.shared


def test_a_process_that_is_gone_has_none() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert device_memory.memory(gone.pid) is None


def test_services_are_found_by_what_they_run_and_who_started_them(tmp_path: Path) -> None:
    """Processes of the pipeline's names, of which some are not the device's and one is another run's."""
    for name in ("edge_agent", "voter", "codec", "trainer"):
        (tmp_path / "services" / name).mkdir(parents=True)
        (tmp_path / "services" / name / "__main__.py").write_text("import time; time.sleep(600)")
    orders = [
        ["services.edge_agent"],
        ["services.voter"],
        ["services.codec", "--side", "device"],
        ["services.codec", "--side", "server"],
    ]
    orders.append(["services.trainer"])
    running = [subprocess.Popen([sys.executable, "-m", *order, "--device", "edge-0"], cwd=tmp_path) for order in orders]
    try:
        expected = {"agent": running[0].pid, "voter": running[1].pid, "codec-device": running[2].pid}
        deadline = time.monotonic() + 60
        while device_memory.services(os.getpid()) != expected and time.monotonic() < deadline:
            time.sleep(0.02)  # between fork and exec a process has its parent's name
        assert device_memory.services(os.getpid()) == expected
        assert device_memory.services(running[0].pid) == {}
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_the_moment_is_when_all_held_most_and_peaks_are_each_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(held: float) -> Memory:
        return Memory(anonymous=held - 1, shared=1, files=7)

    moments = [{"agent": of(10)}, {"agent": of(30), "voter": of(5)}, {"agent": of(20), "voter": of(25)}, {"voter": of(26)}]
    seen = iter(moments)
    now: dict[str, Memory] = {}

    def services(parent: int) -> dict[str, int]:
        now.clear()
        now.update(next(seen, {}))
        return dict(zip(now, range(len(now)), strict=True))

    monkeypatch.setattr(device_memory, "services", services)
    monkeypatch.setattr(device_memory, "memory", lambda place: list(now.values())[place])
    monkeypatch.setattr(device_memory, "EVERY_S", 0.01)
    most, peaks = device_memory.watch([sys.executable, "-c", "import time; time.sleep(0.5)"])
    assert most == moments[2]
    assert peaks == {"agent": 30, "voter": 26}


def test_a_run_that_fails_is_told() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        device_memory.watch([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_table_adds_up() -> None:
    most = {"agent": Memory(anonymous=100, shared=20, files=40), "voter": Memory(anonymous=50, shared=5, files=30)}
    out = io.StringIO()
    Console(file=out, width=100).print(device_memory.table(most, {"agent": 130, "voter": 60}))
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in out.getvalue().splitlines() if line.startswith("│")
    ]
    assert rows == [
        ["agent", "100", "20", "120", "130", "40"],
        ["voter", "50", "5", "55", "60", "30"],
        ["device", "", "", "175", "", "70"],
    ]


def test_the_run_that_is_watched_is_one_that_r2f_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders: list[list[str]] = []

    def watch(order: list[str]) -> tuple[dict[str, Memory], dict[str, float]]:
        orders.append(order)
        if len(orders) == 2:
            raise subprocess.CalledProcessError(7, order)
        return {"agent": Memory(anonymous=100, shared=20, files=40)}, {"agent": 130}

    monkeypatch.setattr(device_memory, "watch", watch)
    monkeypatch.setattr(device_memory, "photos", lambda shared: None)
    monkeypatch.setattr(device_memory, "float_weights", lambda *given: tmp_path / "w.safetensors")
    given = ["device_memory", "--network", "resnet18", "--shared", str(tmp_path), "--iterations", "5", "--ber", "1e-4"]
    monkeypatch.setattr(sys, "argv", given)
    device_memory.main()
    assert "agent" in capsys.readouterr().out
    (order,) = orders
    assert order[:4] == [sys.executable, "-m", "r2f.cli", "retrain"]
    said = dict(zip(order[4::2], order[5::2], strict=True))
    assert said == {
        "--network": "resnet18", "--weights": str(tmp_path / "w.safetensors"), "--iterations": "5", "--ber": "1e-4",
        "--data": str(tmp_path / "data" / "imagenet224.npz"), "--eval-seeds": "1", "--eval-samples": "32",
    }  # fmt: skip
    help_of = subprocess.run(
        [*order[:4], "--help"], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert all(option in help_of.stdout for option in said)
    with pytest.raises(device_memory.command.InputError, match="r2f retrain ended with exit code 7"):
        device_memory.main()
