"""Cells of an experiment: measured in parallel, each once, and kept.

A cell is a ``msgspec.Struct`` that says all of one measurement; a measurement is a function of a module, of a cell and the
folder of real data, that returns a struct. Its result is kept in a file named by a digest of the cell, of the code that the
function depends on, and of the contents of the files that it reads. So a run that was stopped goes on where it was, and one
after a change measures what the change may have touched.

Cells run on this machine's cores, or on a Dask or Ray cluster by its address (``r2f.pool``), whose workers must have this
checkout and the folder of real data at the same places.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from accelsim.files import write_whole
from experiments.common.code_version import code_version
from experiments.common.command import InputError, positive, real
from r2f import pool as pools

C = TypeVar("C", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)

CACHE: Final = Path("runs/cells")


class Pool(NamedTuple):
    """Where cells run: on ``jobs`` of this machine's cores, unless a cluster's address is given."""

    jobs: int = 1
    dask: str | None = None
    ray: str | None = None
    cache: Path = CACHE


def add_pool(to: argparse.ArgumentParser) -> None:
    """``--jobs``, ``--dask``, ``--ray`` and ``--cache``."""
    cores = len(os.sched_getaffinity(0))
    group = to.add_argument_group("where it runs")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=positive, default=cores, help="cells at a time, a core each [%(default)s]")
    where.add_argument("--dask", metavar="ADDRESS", help="on the Dask cluster of this scheduler, e.g. tcp://10.0.0.1:8786")
    where.add_argument("--ray", metavar="ADDRESS", help="on the Ray cluster of this address, e.g. auto")
    group.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER", help="keeps finished cells [%(default)s]")


def pool_of(given: argparse.Namespace) -> Pool:
    """What ``add_pool``'s options say."""
    return Pool(given.jobs, given.dask, given.ray, given.cache)


def run(
    measure: Callable[[C, Path], R],
    cells: Sequence[C],
    kind: type[R],
    *,
    shared: Path,
    reads: Callable[[C], Sequence[str]],
    pool: Pool,
    say: Callable[[str], None] | None = None,
) -> list[R]:
    """``measure(cell, shared)`` of every cell, in their order: kept ones are read, others measured and kept.

    ``kind`` is the results' struct, ``reads`` names the files below ``shared`` that a cell's measurement reads. ``say`` gets
    a line a finished cell; stderr where None. The first failure ends it, and what was measured before is kept.
    Raises InputError where such a file is missing, PoolError where a cluster cannot be reached, and what ``measure`` raises.
    """
    say = say or _to_stderr
    files = {cell: pool.cache / f"{key(measure, cell, shared, reads(cell))}.json" for cell in dict.fromkeys(cells)}
    found: dict[C, R | None] = {cell: _kept(path, kind) for cell, path in files.items()}
    missing = [cell for cell, result in found.items() if result is None]
    name = measure.__module__.rpartition(".")[2]
    if missing:
        pool.cache.mkdir(parents=True, exist_ok=True)
        say(f"{name}: {len(files) - len(missing)} of {len(files)} cells are kept, {len(missing)} to measure")
    start = time.perf_counter()
    for number, (place, measured) in enumerate(_measured(measure, missing, shared, pool), 1):
        found[missing[place]] = measured
        write_whole(files[missing[place]], msgspec.json.encode(measured))
        took = time.perf_counter() - start
        left = took / number * (len(missing) - number)
        say(f"{name}: {number}/{len(missing)} in {_clock(took)}, about {_clock(left)} left: {_shown(missing[place])}")
    return [result for cell in cells if (result := found[cell]) is not None]


def key(measure: Callable[..., Any], cell: msgspec.Struct, shared: Path, reads: Sequence[str]) -> str:
    """Name of a cell's file, without its ending."""
    said = (
        f"{measure.__module__}.{measure.__qualname__}",
        type(cell).__qualname__,
        msgspec.to_builtins(cell, order="sorted"),
        code_version(measure),
        {name: file_digest(real(shared, name)) for name in sorted(reads)},
    )
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents. Raises OSError where it cannot be read."""
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _digest(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(path: Path, kind: type[R]) -> R | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: not a {kind.__name__} ({error}); delete it, and the cell is measured again") from error


def _measured(measure: Callable[[C, Path], R], cells: Sequence[C], shared: Path, pool: Pool) -> Iterator[tuple[int, R]]:
    """(place of a cell, its result), as they are finished."""
    return pools.each(_cell, (measure, shared), cells, pools.Pool(pool.jobs, pool.dask, pool.ray))


def _cell(common: tuple[Callable[[C, Path], R], Path], cell: C) -> R:
    measure, shared = common
    return measure(cell, shared)


def _shown(cell: msgspec.Struct) -> str:
    """What tells a cell from others: the fields that are not their defaults."""
    fields = [(field.name, getattr(cell, field.name), field.default) for field in msgspec.structs.fields(cell)]
    return ", ".join(f"{name} {value}" for name, value, default in fields if value != default)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
