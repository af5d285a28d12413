"""Tasks give the same wherever they run; a worker that dies loses none; what cannot be reached is one line, soon."""

from __future__ import annotations

import importlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from r2f import pool
from r2f.pool import Pool, PoolError, WorkerLost, each

MODULE = """
import os
import signal
import time
from pathlib import Path
import torch

def square(common, task):
    time.sleep(0.02)
    return common["factor"] * task * task, torch.get_num_threads(), os.getpid()

def refuses(common, task):
    if task == 2:
        raise ArithmeticError(f"task {task}")
    return task

def dies_once(common, task):
    marker = Path(common) / f"{task}"
    if task == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task

def dies(common, task):
    if task == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task

def waits(common, task):
    (Path(common) / f"begun-{task}").touch()
    time.sleep(30)
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "some_tasks.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
        # Processes that another test left idle do not know of the folder.
        get_reusable_executor().shutdown(wait=True)
        yield importlib.import_module("some_tasks")


@contextmanager
def cluster_of(workers: int) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def dask_cluster(tasks: Any) -> Iterator[Any]:
    """Whose workers come again where they are killed."""
    with cluster_of(2) as cluster:
        yield cluster


@pytest.fixture
def ray_cluster(tasks: Any) -> Iterator[str]:
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


def squares(found: list[tuple[int, Any]]) -> list[Any]:
    assert sorted(place for place, _ in found) == list(range(len(found)))
    return [result for _, result in sorted(found)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_on_cores(tasks: Any, jobs: int) -> None:
    before = torch.get_num_threads()
    found = squares(list(each(tasks.square, {"factor": 3}, range(5), Pool(jobs))))
    assert [value for value, _, _ in found] == [0, 3, 12, 27, 48]
    assert {threads for _, threads, _ in found} == {1}
    assert (os.getpid() in {process for _, _, process in found}) == (jobs == 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_task_raises_is_raised(tasks: Any, jobs: int) -> None:
    with pytest.raises(ArithmeticError, match="task 2"):
        list(each(tasks.refuses, None, range(4), Pool(jobs)))


def test_a_core_s_process_that_is_killed_loses_no_task(tasks: Any, tmp_path: Path) -> None:
    assert squares(list(each(tasks.dies_once, str(tmp_path), range(5), Pool(2)))) == [0, 1, 4, 9, 16]
    assert (tmp_path / "1").exists()


def test_a_task_that_always_kills_its_process_ends_it(tasks: Any) -> None:
    found: list[tuple[int, Any]] = []
    with pytest.raises(WorkerLost, match=r"worker processes died 4 times .*give fewer --jobs"):
        found.extend(each(tasks.dies, None, range(4), Pool(2)))
    assert sorted(found) == [(0, 0), (2, 4), (3, 9)]


def test_on_dask(tasks: Any, dask_cluster: Any) -> None:
    found = squares(list(each(tasks.square, {"factor": 3}, range(5), Pool(dask=dask_cluster.scheduler_address))))
    assert [value for value, _, _ in found] == [0, 3, 12, 27, 48]
    assert {threads for _, threads, _ in found} == {1}
    with pytest.raises(ArithmeticError, match="task 2"):
        list(each(tasks.refuses, None, range(4), Pool(dask=dask_cluster.scheduler_address)))


def test_a_dask_worker_that_is_killed_loses_no_task(tasks: Any, dask_cluster: Any, tmp_path: Path) -> None:
    found = list(each(tasks.dies_once, str(tmp_path), range(5), Pool(dask=dask_cluster.scheduler_address)))
    assert squares(found) == [0, 1, 4, 9, 16]
    assert (tmp_path / "1").exists()


def test_a_task_that_kills_every_dask_worker_is_named(tasks: Any, dask_cluster: Any) -> None:
    found: list[tuple[int, Any]] = []
    with pytest.raises(WorkerLost, match=r"--dask tcp://.*: \d workers died of it, the last at tcp://") as lost:
        found.extend(each(tasks.dies, None, range(4), Pool(dask=dask_cluster.scheduler_address)))
    assert lost.value.place is not None
    # A task that waits at a worker when that dies is under suspicion too, so on a busy machine not all others need be there.
    assert dict(found).items() <= {0: 0, 2: 4, 3: 9}.items()


def test_a_dask_cluster_that_loses_all_workers_ends_it(tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PATIENCE_S", 1.0)
    with cluster_of(1) as cluster:
        threading.Thread(target=once_begun, args=(tmp_path, lambda: cluster.scale(0))).start()
        with pytest.raises(WorkerLost, match=r"no worker for 1 s; start some \(dask worker tcp://"):
            list(each(tasks.waits, str(tmp_path), range(2), Pool(dask=cluster.scheduler_address)))


def test_a_dask_scheduler_that_goes_away_ends_it(tasks: Any, tmp_path: Path) -> None:
    with cluster_of(1) as cluster:
        threading.Thread(target=once_begun, args=(tmp_path, lambda: cluster.sync(cluster.scheduler.close))).start()
        with pytest.raises(PoolError, match=r"the scheduler is gone.*the same command goes on"):
            list(each(tasks.waits, str(tmp_path), range(2), Pool(dask=cluster.scheduler_address)))


def once_begun(folder: Path, act: Any) -> None:
    while not any(folder.glob("begun-*")):
        time.sleep(0.05)
    act()


def test_a_dask_scheduler_without_workers_is_named(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(pool, "CONNECT_S", 1.0)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        pytest.raises(PoolError, match=r"--dask \S+: no worker there; start some: dask worker"),
    ):
        list(each(tasks.square, {"factor": 1}, [1], Pool(dask=cluster.scheduler_address)))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "127.0.0.1:9", "nonsense://x"])
def test_a_dask_cluster_that_is_not_there_is_named(tasks: Any, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CONNECT_S", 1.0)
    begun = time.monotonic()
    with pytest.raises(PoolError, match=f"--dask {address}: no scheduler answers there"):
        list(each(tasks.square, {"factor": 1}, [1], Pool(dask=address)))
    assert time.monotonic() - begun < 10


@pytest.mark.filterwarnings("ignore")
def test_on_ray(tasks: Any, ray_cluster: str, tmp_path: Path) -> None:
    found = squares(list(each(tasks.square, {"factor": 3}, range(5), Pool(ray=ray_cluster))))
    assert [value for value, _, _ in found] == [0, 3, 12, 27, 48]
    assert {threads for _, threads, _ in found} == {1}
    assert os.getpid() not in {process for _, _, process in found}
    with pytest.raises(ArithmeticError, match="task 2"):
        list(each(tasks.refuses, None, range(4), Pool(ray=ray_cluster)))
    assert squares(list(each(tasks.dies_once, str(tmp_path), range(5), Pool(ray=ray_cluster)))) == [0, 1, 4, 9, 16]
    assert (tmp_path / "1").exists()
    with pytest.raises(WorkerLost, match="4 workers died of it") as lost:
        list(each(tasks.dies, None, range(3), Pool(ray=ray_cluster)))
    assert lost.value.place == 1


@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_that_is_not_there_is_named(tasks: Any) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        for given, said in (
            (address, "no cluster answers there"),
            ("auto", "no cluster answers there"),
            ("x", "expected auto"),
        ):
            begun = time.monotonic()
            with pytest.raises(PoolError, match=f"--ray {given}: {said}"):
                list(each(tasks.square, {"factor": 1}, [1], Pool(ray=given)))
            assert time.monotonic() - begun < 10


def test_packages_that_are_not_there_are_named(tasks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    for given, said in ((Pool(dask="tcp://127.0.0.1:9"), "dask\\[distributed\\]"), (Pool(ray="auto"), "pip install ray")):
        with pytest.raises(PoolError, match=said):
            list(each(tasks.square, {"factor": 1}, [1], given))


def test_an_end_of_asking_leaves_the_rest_undone(tasks: Any, dask_cluster: Any) -> None:
    found = each(tasks.square, {"factor": 1}, range(200), Pool(dask=dask_cluster.scheduler_address))
    next(found)
    found.close()  # type: ignore[attr-defined]
    begun = time.monotonic()
    assert len(list(each(tasks.square, {"factor": 1}, range(2), Pool(dask=dask_cluster.scheduler_address)))) == 2
    assert time.monotonic() - begun < 10
