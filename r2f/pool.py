"""Where work that is cut into tasks runs: on this machine's cores (joblib's loky), on a Dask cluster, or on Ray.

The engines are taken as they are, with what they do about a worker that dies: its tasks go to others. What all tasks share is
sent once. A task has its worker's process to itself and runs on one thread, so its result does not depend on where it ran.
Workers import the same R2F.
"""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from accelsim.threads import one_thread

C = TypeVar("C")
T = TypeVar("T")
R = TypeVar("R")

CONNECT_S: Final = 10.0
"""Patience for a cluster that is to answer, and for its first worker."""
PATIENCE_S: Final = 60.0
"""How long a cluster may be without any worker while tasks wait."""
DEATHS: Final = 3
"""How often a task may have lost its worker and be given to another: as Dask and Ray have it by default."""
_POLL_S: Final = 0.05
_ALONE: Final = threading.Lock()


class PoolError(ValueError):
    """Work that cannot go on: no cluster at an address, or workers that die. The message says what to do."""


class WorkerLost(PoolError):
    """Workers died of a task, or of all tasks there were; ``place`` is the task's where it is known."""

    def __init__(self, place: int | None, said: str) -> None:
        super().__init__(said)
        self.place = place


class Pool(NamedTuple):
    """Where tasks run: on ``jobs`` of this machine's cores, unless a cluster's address is given."""

    jobs: int = 1
    dask: str | None = None
    ray: str | None = None


def each(work: Callable[[C, T], R], common: C, tasks: Sequence[T], pool: Pool) -> Iterator[tuple[int, R]]:
    """(place of a task, ``work(common, task)``), as they are finished. ``work`` is a module's function.

    What a task raises ends it, and so does the end of the iteration: what has not begun is then not begun.
    Raises PoolError where a cluster does not answer or is lost, WorkerLost where workers die again and again; where it is one
    task that they die of, once the others are done, as far as the engine allows.
    """
    if pool.dask is not None:
        return _on_dask(work, common, tasks, pool.dask)
    if pool.ray is not None:
        return _on_ray(work, common, tasks, pool.ray)
    if pool.jobs == 1 or len(tasks) < 2:
        return ((place, alone(work, common, task)) for place, task in enumerate(tasks))
    return _on_cores(work, common, tasks, pool.jobs)


def alone(work: Callable[[C, T], R], common: C, task: T) -> R:
    """The task's result, on one thread, with no other task in this process beside it: gradients in float32 depend on how many
    threads add them up."""
    with _ALONE, one_thread():
        return work(common, task)


def _placed(work: Callable[[C, T], R], common: C, place: int, task: T) -> tuple[int, R]:
    return place, alone(work, common, task)


def _on_cores(work: Callable[[C, T], R], common: C, tasks: Sequence[T], jobs: int) -> Iterator[tuple[int, R]]:
    left = dict(enumerate(tasks))
    deaths = 0
    while left:
        due = [joblib.delayed(_placed)(work, common, place, task) for place, task in left.items()]
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1), warnings.catch_warnings():
            # loky takes the networks that a worker keeps for a leak, and starts another in its place: no harm done.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs")
            # Whoever stops asking knows that.
            warnings.filterwarnings("ignore", ".*You could benefit from adjusting")
            parallel = joblib.Parallel(
                # Not 1, of which joblib makes this very process.
                n_jobs=min(jobs, max(2, len(due))),
                batch_size=1,
                pre_dispatch="all",
                return_as="generator_unordered",
            )
            try:
                with closing(parallel(due)) as found:
                    for place, result in found:
                        del left[place]
                        deaths = 0
                        yield place, result
            except TerminatedWorkerError as error:
                # loky gives up all of its processes with the one, and does not say whose task it was.
                deaths += 1
                if deaths > DEATHS:
                    raise WorkerLost(
                        None,
                        f"worker processes died {deaths} times without finishing a task ({_short(error)}); "
                        "where memory is short, give fewer --jobs",
                    ) from error


def _on_dask(work: Callable[[C, T], R], common: C, tasks: Sequence[T], address: str) -> Iterator[tuple[int, R]]:
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError:
        raise PoolError("--dask needs the package distributed: pip install 'dask[distributed]'") from None
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise PoolError(f"--dask {address}: no scheduler answers there: {_short(error)}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError:
            raise PoolError(f"--dask {address}: no worker there; start some: dask worker {address} --nthreads 1") from None
        # As a task of its own, and not scattered, it comes again where the workers that had it died.
        shared = client.submit(_same, common, pure=False)
        due = {client.submit(alone, work, shared, task, pure=False): place for place, task in enumerate(tasks)}
        completed = as_completed(due, loop=client.loop)
        seen = time.monotonic()
        lost: WorkerLost | None = None
        while due:
            ready = completed.next_batch(block=False)
            if ready:
                seen = time.monotonic()
            elif client.status != "running":
                raise PoolError(f"--dask {address}: the scheduler is gone; once it is back, the same command goes on")
            elif time.monotonic() - seen > PATIENCE_S:
                if not client.nthreads():
                    raise WorkerLost(
                        None,
                        f"--dask {address}: no worker for {PATIENCE_S:g} s; start some (dask worker {address} --nthreads 1), "
                        "and the same command goes on",
                    )
                seen = time.monotonic()
            else:
                time.sleep(_POLL_S)
            for future in ready:
                place = due.pop(future)
                try:
                    yield place, future.result()
                except KilledWorker as error:
                    # The others' results first: nothing that is done is lost.
                    lost = WorkerLost(
                        place,
                        f"--dask {address}: {error.allowed_failures + 1} workers died of it, the last at "
                        f"{error.last_worker.address}; their logs say why, too little memory in most cases",
                    )
                except CancelledError as error:
                    raise PoolError(
                        f"--dask {address}: the scheduler is gone or gave a task up ({_short(error)}); the same command goes on"
                    ) from error
        if lost is not None:
            raise lost


def _on_ray(work: Callable[[C, T], R], common: C, tasks: Sequence[T], address: str) -> Iterator[tuple[int, R]]:
    try:
        import ray
    except ImportError:
        raise PoolError("--ray needs the package ray: pip install ray") from None
    _listening(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PoolError(f"--ray {address}: no cluster answers there: {_short(error)}") from error
    due: dict[Any, int] = {}
    try:
        shared = ray.put(common)
        run = ray.remote(num_cpus=1, max_retries=DEATHS)(alone)
        due = {run.remote(work, shared, task): place for place, task in enumerate(tasks)}
        seen = time.monotonic()
        lost: WorkerLost | None = None
        while due:
            ready, _ = ray.wait([*due], num_returns=1, timeout=1.0)
            if ready or ray.cluster_resources().get("CPU", 0) >= 1:
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE_S:
                raise WorkerLost(
                    None,
                    f"--ray {address}: no core for {PATIENCE_S:g} s; start a node (ray start --address {address}), "
                    "and the same command goes on",
                )
            for reference in ready:
                place = due.pop(reference)
                try:
                    yield place, ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                    lost = WorkerLost(
                        place,
                        f"--ray {address}: {DEATHS + 1} workers died of it ({_short(error)}); too little memory in most cases",
                    )
                except ray.exceptions.RayError as error:
                    raise PoolError(f"--ray {address}: {_short(error)}; the same command goes on") from error
        if lost is not None:
            raise lost
    finally:
        for reference in due:
            ray.cancel(reference, force=True)
        ray.shutdown()


def _listening(address: str) -> None:
    """Raises PoolError where nothing listens at a Ray address that names a host: Ray itself would try for long."""
    where = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = where.hostname, where.port
    except ValueError as error:
        raise PoolError(f"--ray {address}: {error}; expected auto or host:port") from None
    if port is None or host is None:
        if address != "auto":
            raise PoolError(f"--ray {address}: expected auto, for the cluster that this machine is part of, or host:port")
        return
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        raise PoolError(f"--ray {address}: no cluster answers there: {error}") from error


def _same(value: C) -> C:
    return value


def _short(error: BaseException) -> str:
    """What an engine says, on one line of a length to read."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 200 else f"{said[:200]}..."
