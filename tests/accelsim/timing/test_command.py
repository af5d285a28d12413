"""The table that ``python -m accelsim.timing`` prints, number by number, and the files that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from accelsim.accelerators.contract import example
from accelsim.int8 import storage
from accelsim.timing import Array, network_timing
from accelsim.timing.__main__ import main
from accelsim.timing.scalesim import read_config, topology, write_config


def run(*arguments: object) -> tuple[int, str]:
    import typer

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "n.safetensors"
    storage.save(example(8)[0], path)
    return path


def test_every_number_of_the_table(file: Path, tmp_path: Path) -> None:
    array = Array(rows=8, columns=4)
    write_config(array, tmp_path / "in.cfg")
    code, text = run(file, "--batch", 2, "--executions", 3, "--array", tmp_path / "in.cfg")
    assert code == 0
    head, *rows, total = text.strip().splitlines()
    assert " ".join(head.split()) == "layer groups kcycles FP ms write ms TMR ms DRAM MB buffer MB name"
    expected = network_timing(example(8)[0], 2, array)
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "6"]
    assert [row.split()[1] for row in rows] == ["1", "8", "2", "1"]
    assert [row.split()[-1] for row in rows] == ["stem", "depthwise", "grouped", "classes"]
    for row, layer in zip(rows, expected.layers, strict=True):
        moved = layer.traffic.buffer_reads + layer.traffic.buffer_writes
        numbers = [
            layer.cycles / 1e3, layer.forward_s * 1e3, layer.write_back_s * 1e3, layer.tmr_s * 1e3, layer.traffic.dram / 1e6,
            moved / 1e6,
        ]  # fmt: skip
        assert [float(cell) for cell in row.split()[2:8]] == pytest.approx(numbers, abs=5.1e-4)
    sums = [float(cell) for cell in total.split()[1:7]]
    assert sums[:4] == pytest.approx(
        [expected.cycles / 1e3, expected.forward_s * 1e3, expected.write_back_s * 1e3, expected.tmr_s * 1e3], abs=5.1e-4
    )
    assert total.endswith("batch of 2")
    # The stem by hand: 64 pixels, K = 27 in 4 tiles, N = 8 in 2; two images at 200 MHz.
    assert rows[0].split()[2] == f"{(2 * 8 + 4 + 64 - 2) * 4 * 2 / 1e3:.3f}"


def test_scalesims_files(file: Path, tmp_path: Path) -> None:
    code, _ = run(file, "--scalesim", tmp_path / "scalesim" / "new")
    assert code == 0
    assert (tmp_path / "scalesim" / "new" / "topology.csv").read_text() == topology(example(8)[0])
    assert read_config(tmp_path / "scalesim" / "new" / "array.cfg") == Array()


@pytest.mark.parametrize("wrong", ["absent", "no network", "array", "binary array", "no array"])
def test_what_is_wrong_is_one_line(file: Path, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "text").write_text("something else")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    arguments: list[object] = {
        "absent": [tmp_path / "absent.safetensors"],
        "no network": [tmp_path / "text"],
        "array": [file, "--array", tmp_path / "text"],
        "binary array": [file, "--array", tmp_path / "binary"],
        "no array": [file, "--array", tmp_path / "nofile"],
    }[wrong]
    code, text = run(*arguments)
    assert code == 1
    assert text.count("\n") <= 1
    assert str(tmp_path) in text
