"""Cells are measured once, in any pool the same, and again only where something that they depend on changed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from joblib.externals.loky import get_reusable_executor

from experiments.common import code_version, command, runner
from experiments.common.runner import Pool
from r2f import pool

MODULE = """
import os
import msgspec
from pathlib import Path
import torch

class Cell(msgspec.Struct, frozen=True):
    number: int

class Found(msgspec.Struct, frozen=True):
    value: int
    threads: int
    process: int

def measure(cell, shared):
    if cell.number < 0:
        raise ArithmeticError(f"cell {cell.number}")
    with (shared / "calls").open("a") as file:
        file.write(f"{cell.number}\\n")
    return Found(cell.number * int((shared / "factor").read_text()), torch.get_num_threads(), os.getpid())
"""


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with a measurement that writes down its calls in ``shared``."""
    (tmp_path / "a_measurement.py").write_text(MODULE)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "factor").write_text("3")
    monkeypatch.syspath_prepend(tmp_path)
    code_version._version.cache_clear()
    return importlib.reload(importlib.import_module("a_measurement"))


@pytest.fixture
def go(measured: Any, tmp_path: Path) -> Callable[..., list[Any]]:
    """Runs cells of these numbers."""

    def run(*numbers: int, pool: Pool | None = None, said: list[str] | None = None) -> list[Any]:
        return runner.run(
            measured.measure,
            [measured.Cell(number) for number in numbers],
            measured.Found,
            shared=tmp_path / "shared",
            reads=lambda cell: ["factor"],
            pool=(pool or Pool())._replace(cache=tmp_path / "cells"),
            say=(said if said is not None else []).append,
        )

    return run


def calls(tmp_path: Path) -> list[int]:
    path = tmp_path / "shared" / "calls"
    return sorted(map(int, path.read_text().split())) if path.exists() else []


def test_results_are_in_the_cells_order_and_each_is_measured_once(go: Callable[..., list[Any]], tmp_path: Path) -> None:
    said: list[str] = []
    assert [found.value for found in go(3, 1, 2, 3, said=said)] == [9, 3, 6, 9]
    assert calls(tmp_path) == [1, 2, 3]
    assert said[0] == "a_measurement: 0 of 3 cells are kept, 3 to measure"
    assert "3/3" in said[-1]
    assert [found.value for found in go(2, 4)] == [6, 12]
    assert calls(tmp_path) == [1, 2, 3, 4]
    assert go(1)[0].threads == 1


def test_a_run_that_failed_goes_on_where_it_was(go: Callable[..., list[Any]], tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError, match="cell -1"):
        go(5, 6, -1, 7)
    assert calls(tmp_path) == [5, 6]
    assert [found.value for found in go(5, 6, 7)] == [15, 18, 21]
    assert calls(tmp_path) == [5, 6, 7]


def test_it_is_measured_again_where_its_files_or_its_code_changed(
    go: Callable[..., list[Any]], measured: Any, tmp_path: Path
) -> None:
    go(1)
    (tmp_path / "shared" / "unread").write_text("x")
    go(1)
    assert calls(tmp_path) == [1]
    (tmp_path / "shared" / "factor").write_text("40")
    assert go(1)[0].value == 40
    assert calls(tmp_path) == [1, 1]
    path = tmp_path / "a_measurement.py"
    path.write_text(path.read_text() + "\nMORE = 1\n")
    code_version._version.cache_clear()
    go(1)
    assert calls(tmp_path) == [1, 1, 1]


def test_a_kept_file_that_is_none_is_named(go: Callable[..., list[Any]], tmp_path: Path) -> None:
    go(1)
    (file,) = (tmp_path / "cells").glob("*.json")
    file.write_text("{}")
    with pytest.raises(command.InputError, match=file.name):
        go(1)


def test_on_cores_it_gives_the_same(go: Callable[..., list[Any]], tmp_path: Path) -> None:
    get_reusable_executor().shutdown()  # processes that another test left have not its path
    found = go(1, 2, 3, 4, pool=Pool(jobs=2))
    assert [each.value for each in found] == [3, 6, 9, 12]
    assert {each.threads for each in found} == {1}
    assert calls(tmp_path) == [1, 2, 3, 4]


def test_on_a_dask_cluster_it_gives_the_same(go: Callable[..., list[Any]], tmp_path: Path) -> None:
    import os

    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        found = go(*range(1, 7), pool=Pool(dask=cluster.scheduler_address))
    assert [each.value for each in found] == [3, 6, 9, 12, 15, 18]
    assert os.getpid() not in {each.process for each in found}
    assert calls(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_cluster_that_is_not_there_is_named(go: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CONNECT_S", 0.5)
    with pytest.raises(pool.PoolError, match=r"--dask tcp://127\.0\.0\.1:9"):
        go(1, pool=Pool(dask="tcp://127.0.0.1:9"))


def test_a_key_is_of_the_cell(measured: Any, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    keys = {runner.key(measured.measure, measured.Cell(number), shared, ["factor"]) for number in (1, 2, 2)}
    assert len(keys) == 2
