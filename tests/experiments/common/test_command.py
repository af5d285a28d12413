"""The experiments' command lines: what is missing or means nothing is one line."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from experiments import __main__ as listing
from experiments import recover
from experiments.common import command

NAMES = sorted(name.rpartition(".")[2] for name, _ in listing.listed())
NEEDLESS = (
    "deconv_quality", "deconv_speed", "diagnose", "fig6", "fig7", "phase", "recover", "results", "rounding", "soak",
    "table3",
)  # fmt: skip
NEED_DATA = [name for name in NAMES if not name.startswith(NEEDLESS)]


def ended(module: ModuleType, *arguments: str, patch: pytest.MonkeyPatch) -> object:
    patch.setattr(sys, "argv", [f"/somewhere/{module.__name__.rpartition('.')[2]}.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command.run(module.main)
    return stopped.value.code


def test_all_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    listing.main()
    lines = capsys.readouterr().out.splitlines()
    assert {"fig1_ber_sweep", "fig6_time", "fig7_bytes", "table3_networks", "recover", "wire_cost", "exactness"} <= set(NAMES)
    assert [line.split()[2].removeprefix("experiments.") for line in lines[: len(NAMES)]] == NAMES
    assert all(len(line) > 60 for line in lines[: len(NAMES)])


@pytest.mark.parametrize("name", NEED_DATA)
def test_without_the_folder_of_real_data_one_line_says_what_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"experiments.{name}")
    given = ["--shared", str(tmp_path / "absent")]
    given += ["--out", str(tmp_path / "out.json")] if name == "wire_cost" else []
    given += ["--out", str(tmp_path), "--network", "resnet20"] if name == "chained_vs_direct" else []
    assert ended(module, *given, patch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: {tmp_path / 'absent'}/")
    assert "not found. This experiment reads real photos and trained weights from one folder" in line
    assert "docs/experiments.md" in line


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_it_does(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"experiments.{name}")
    assert ended(module, "--help", patch=monkeypatch) == 0
    assert (module.__doc__ or "").splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("recover", ["--ber", "2"]),
        ("recover", ["--ber", "-1e-3"]),
        ("recover", ["--ber", "nan"]),
        ("recover", ["--overhead", "30"]),
        ("fig1_ber_sweep", ["--seeds", "0"]),
        ("fig4_accuracy", ["--jobs", "-5"]),
        ("fig1_ber_sweep", ["--network", "resnet99"]),
        ("fig1_ber_sweep", ["--network"]),
        ("exactness", ["--batch", "0"]),
        ("vote_rules", ["--iterations", "none"]),
        ("int8_accuracy", ["--jpeg", "101"]),
        ("int8_accuracy", ["--jpeg", "0"]),
        ("int8_accuracy", ["--calibration", "0"]),
        ("chained_vs_direct", ["--out", "x", "--threads", "0"]),
        ("device_memory", ["--iterations", "0"]),
    ],
)
def test_an_argument_that_means_nothing(
    name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"experiments.{name}")
    assert ended(module, *arguments, patch=monkeypatch) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"{name}.py: error: argument {arguments[-2] if len(arguments) > 1 else arguments[0]}")
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--network", "nosuch"], "nosuch"),
        (["--network", "mods:net"], "mods"),
        (["--weights", "missing.pth"], r"missing.pth"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(recover, *given, patch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recover: ")
    assert said in line


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(command.positive, "7", 7), (command.rate, "0", 0.0), (command.rate, "1e-4", 1e-4), (command.quality, "100", 100)],
)
def test_numbers_are_read(kind: Callable[[str], float], text: str, value: float) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (command.positive, "1.5", "'1.5' is not a number from 1 on"),
        (command.rate, "1.1", "'1.1' is not a number from 0 to 1"),
        (command.rate, "much", "'much' is not a number from 0 to 1"),
        (command.quality, "101", "'101' is not a JPEG quality, 1 to 100"),
    ],
)
def test_what_is_no_number_is_told(kind: Callable[[str], float], text: str, says: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=says):
        kind(text)


def test_the_folder_is_the_variables_else_beside_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2F_DATA", "/real")
    assert command.default_folder() == Path("/real")
    monkeypatch.delenv("R2F_DATA")
    assert command.default_folder() == Path(__file__).resolve().parents[4] / "shared"


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    def full() -> None:
        raise OSError(28, "No space left on device", "/out")

    monkeypatch.setattr(sys, "argv", ["/x/fig.py"])
    for work, code in ((lambda: None, None), (lambda: 1, 1), (stop, 130), (full, 2)):
        with pytest.raises(SystemExit) as stopped:
            command.run(work)
        assert stopped.value.code == code
    assert capsys.readouterr().err == "fig: [Errno 28] No space left on device: '/out'\n"
    with pytest.raises(ZeroDivisionError):  # a fault of ours is not hidden
        command.run(lambda: 1 // 0)
