"""The soak: twenty kills change nothing, and what goes wrong is noticed."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from broker.launch import find_mosquitto
from experiments import soak
from experiments.common import disturbing
from experiments.common.command import InputError
from experiments.common.disturbing import ROOT, Scene
from services.trainer.core import result

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_mosquitto() is None or sys.platform != "linux", reason="needs Linux and Mosquitto"),
]


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[soak.Run]]:
    """Twenty kills, and the folder of that soak."""
    out = tmp_path_factory.mktemp("soak")
    lines: list[str] = []
    runs = soak.soak(
        out, minutes=1e6, seed=5, every_s=0.8, iterations=12, kills=20, links=[None], weights=None, say=lines.append
    )
    return out, runs


def test_twenty_kills_in_a_row_end_with_the_undisturbed_model(twenty: tuple[Path, list[soak.Run]]) -> None:
    out, runs = twenty
    assert [run.failure for run in runs] == [""] * len(runs)
    done = [one for run in runs for one in run.done]
    assert len(done) == 20
    assert {one.whom for one in done} >= {
        "agent",
        "voter",
        "codec-device",
        "codec-server",
        "trainer",
        "broker",
        "broker itself",
    }
    assert all(run.resumed == 0 for run in runs), "nobody had to start r2f again"
    table = (out / "soak.md").read_text()
    assert f"| runs | {len(runs)} |" in table
    assert "| killed | 20 | " in table
    assert f"| ended with the undisturbed run's sha256 | {len(runs)} |" in table
    with (out / "disturbances.csv").open() as file:
        assert sum(int(row["times"]) for row in csv.DictReader(file)) == 20


def test_another_model_and_an_early_end_are_noticed(
    twenty: tuple[Path, list[soak.Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = soak.Pace(((disturbing.in_turn(), 1),), 1e5, 0.0, 0)
    done = twenty[0] / "prepared-one-broker-undisturbed"
    right, other, third = (result.read(done) for _ in range(3))
    other.model_sha256 = "0" * 64
    third.iterations = 11

    def judged(expected: result.Result, program: str) -> str:
        monkeypatch.setattr(soak, "resume", lambda _: [sys.executable, "-c", program])
        return soak.soaked(done, tmp_path / "log", "", expected, Scene(0, Random(0)), pace, lambda _: None).failure

    assert judged(right, "pass") == ""
    assert judged(other, "pass") == f"ended with model {right.model_sha256[:12]}, not 000000000000"
    assert judged(third, "pass") == "ended with the model, but other accuracies"
    assert judged(right, "import sys; sys.exit('no reason')") == "ended early with 1: no reason"


def test_for_want_of_room_r2f_may_end_if_it_says_so(
    twenty: tuple[Path, list[soak.Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for another reason, nor without a word of it, nor where there was room."""
    done = twenty[0] / "prepared-one-broker-undisturbed"
    (tmp_path / "again").touch()

    def fill(scene: Scene) -> disturbing.Disturbance:
        return disturbing.Disturbance("disk full", "all", 600.0, (tmp_path / "again").unlink)

    def judged(said: str, disk: Path | None) -> soak.Run:
        (tmp_path / "again").touch()
        program = (
            f"import os, sys, time; time.sleep(0.5); sys.exit({said!r} if os.path.exists({str(tmp_path / 'again')!r}) else 0)"
        )
        monkeypatch.setattr(soak, "resume", lambda _: [sys.executable, "-c", program])
        pace = soak.Pace(((fill, 1),), 0.01, float("inf"), 1)
        return soak.soaked(done, tmp_path / "log", "", result.read(done), Scene(0, Random(0), disk), pace, lambda _: None)

    run = judged("r2f: [Errno 28] No space left on device: 'report.json'", tmp_path)
    assert (run.failure, run.no_room, run.resumed) == ("", 1, 0)
    assert judged("r2f: another reason", tmp_path).failure == "ended early with 1: r2f: another reason"
    assert judged("r2f: [Errno 28] No space left on device", None).failure.startswith("ended early with 1")


def test_a_run_that_stands_still_is_noticed_and_ended(
    twenty: tuple[Path, list[soak.Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "resume", lambda _: [sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(soak, "STILL_S", 0.3)
    monkeypatch.setattr(soak, "REST_S", 0.1)
    pace = soak.Pace(((disturbing.in_turn(), 1),), 1e5, 0.0, 0)
    expected = result.read(twenty[0] / "prepared-one-broker-undisturbed")
    run = soak.soaked(tmp_path, tmp_path / "log", "", expected, Scene(0, Random(0)), pace, lambda _: None)
    assert run.failure.startswith("stood still for")


def test_what_is_frozen_goes_on_when_it_ends_and_what_is_gone_harms_nobody() -> None:
    def state(process: subprocess.Popen[bytes]) -> str:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def until(process: subprocess.Popen[bytes], *wanted: str) -> None:
        deadline = time.monotonic() + 60
        while state(process) not in wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        scene = Scene(process.pid, Random(2))
        disturbance = None
        while disturbance is None:
            disturbance = disturbing.frozen(scene)
        assert disturbance.whom == ROOT
        until(process, "T")
        disturbance.end()
        until(process, "S", "R")
        while (disturbance := disturbing.frozen(scene)) is None:
            pass
        process.kill()
        process.wait()
        disturbance.end()
        assert disturbing.ended(scene) is None
        assert disturbing.two_killed(scene) is None


def test_a_slow_link_lets_pass_a_tenth_and_then_all_of_it() -> None:
    counts = "import sys, time\nwhile True:\n    time.sleep(0.005)\n    print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", counts, "-m", "broker.link"], stdout=subprocess.PIPE) as link:
        assert link.stdout is not None
        os.set_blocking(link.stdout.fileno(), False)

        def passed(seconds: float) -> int:
            time.sleep(seconds)
            return len(link.stdout.read() or b"")  # type: ignore[union-attr]

        scene = Scene(os.getpid(), Random(0), held=set())
        while not passed(0.1):
            pass
        slow = disturbing.slowed(scene)
        assert slow is not None
        assert scene.held == {link.pid}
        assert disturbing.slowed(scene) is None, "it is slow already"
        passed(0.2)
        some = passed(2.0)
        slow.end()
        assert scene.held == set()
        passed(0.2)
        assert 0 < 3 * some < passed(2.0)
        slow = disturbing.slowed(scene)
        assert slow is not None
        link.kill()
        link.wait()
        slow.end()
    assert disturbing.slowed(scene) is None, "there is no link"


def test_a_clock_is_put_elsewhere_and_no_other_clock(tmp_path: Path) -> None:
    said: list[str] = []
    clock = soak.clock_of(tmp_path, said.append)
    if clock is None:
        pytest.skip(said[0])
    shows = "import time\nwhile input():\n    print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", shows],
        env=os.environ | soak._off(clock),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for offset in (0, *disturbing.STEPS):
            disturbing.set_clock(clock, offset)
            process.stdin.write("now\n")
            process.stdin.flush()
            wall, monotonic = map(float, process.stdout.readline().split())
            assert abs(wall - time.time() - offset) < 2
            assert abs(monotonic - time.monotonic()) < 2
        process.stdin.write("\n")


def test_a_disk_is_full_and_has_room_again(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system")
    said: list[str] = []
    with soak.small_disk(tmp_path / "disk", said.append) as disk:
        if disk is None:
            pytest.skip(said[0])
        full = disturbing.disk_full(Scene(0, Random(0), disk))
        assert full is not None
        with pytest.raises(OSError, match="No space left"):
            (disk / "file").write_bytes(b"x" * 8192)
        assert disturbing.disk_full(Scene(0, Random(0), disk)) is None, "it is full already"
        full.end()
        (disk / "file").write_bytes(b"x" * 8192)


def test_a_disk_that_the_run_takes_a_part_of_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a small file system")
    said: list[str] = []
    allocate, calls = os.posix_fallocate, []

    def late(file: int, offset: int, length: int) -> None:
        if not calls:
            (tmp_path / "disk" / "other").write_bytes(b"x" * 8192)
        calls.append(length)
        allocate(file, offset, length)

    with soak.small_disk(tmp_path / "disk", said.append) as disk:
        if disk is None:
            pytest.skip(said[0])
        monkeypatch.setattr(os, "posix_fallocate", late)
        assert disturbing.disk_full(Scene(0, Random(0), disk)) is not None
        assert calls == [calls[0], calls[0] - 8192]
        assert not os.statvfs(disk).f_bavail


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--minutes", value) for value in ("0", "-1", "nan", "inf", "an hour")),
        *(("--every", value) for value in ("0", "-3", "nan", "1e7", "often")),
        *(("--kills", value) for value in ("0", "-1", "2.5", "nan", "many")),
        *(("--iterations", value) for value in ("0", "-1", "2.5", "nan", "few")),
        *(("--link", value) for value in ("", "LTE", "5g", "hspa,lte", "0")),
        *(("--seed", value) for value in ("", "1.5", "nan", "x", "0x1")),
    ],
)
def test_options_that_mean_nothing(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["soak", option, value])
    with pytest.raises(SystemExit) as ended:
        soak.main()
    assert ended.value.code == 2
    assert option in capsys.readouterr().err


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(InputError, match="is not empty"):
        soak.soak(
            tmp_path, minutes=1, seed=0, every_s=1, iterations=1, kills=None, links=[None], weights=None, say=lambda _: None
        )  # fmt: skip
