"""Broker and services as processes of this host: started, watched, started again when killed, stopped together."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

RESTARTS = 8
"""How often a process that was killed is started again before the run is given up."""
GRACE_S = 5.0
"""From SIGTERM to SIGKILL."""
_PR_SET_PDEATHSIG = 1


class PipelineError(RuntimeError):
    """A process of the pipeline ended and will not be started again; the message is its own last word."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process: the module that ``python -m`` runs and its arguments."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Child:
    program: Program
    log: Path
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0


class Pipeline:
    """Running programs. ``pids`` names them, for whoever wants to kill one."""

    def __init__(self, folder: Path, on_restart: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_restart = on_restart
        self._children: dict[str, _Child] = {}

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each program that runs now."""
        return {n: c.process.pid for n, c in self._children.items() if c.process and c.process.returncode is None}

    def argument(self, name: str, option: str) -> str:
        """Value of an option that a program was started with, such as the broker's ``--port``."""
        arguments = self._children[name].program.arguments
        return arguments[arguments.index(option) + 1]

    async def watch(self, program: Program) -> None:
        """Run a program to its successful end, starting it again when a signal killed it.

        Raises PipelineError with the last line of its log when it gave up by itself, or was killed too often.
        """
        child = _Child(program, self._folder / f"{program.name}.log")
        self._children[program.name] = child
        while True:
            code = await self._run(child)
            if code == 0:
                return
            if code > 0:
                raise PipelineError(_last_words(child.log) or f"{program.name} ended with {code}; see {child.log}")
            if child.restarts >= RESTARTS:
                raise PipelineError(f"{program.name} was killed {RESTARTS + 1} times; see {child.log}")
            child.restarts += 1
            self._on_restart(program.name)
            await asyncio.sleep(0.2 * child.restarts)

    async def _run(self, child: _Child) -> int:
        with child.log.open("ab") as log:
            starting = asyncio.ensure_future(_start(child.program, log))
            try:
                child.process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                await _stop(await starting)  # a process half started would be nobody's
                raise
        try:
            return await child.process.wait()
        finally:
            await _stop(child.process)


@asynccontextmanager
async def running(programs: Sequence[Program], folder: Path, on_restart: Callable[[str], None]) -> AsyncIterator[Pipeline]:
    """The programs, for as long as the block runs; their output goes to ``folder/{name}.log``.

    A program that ends while the block runs ends the block with PipelineError. All are stopped at its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline(folder, on_restart)
    async with asyncio.TaskGroup() as tasks:
        watchers = [tasks.create_task(_forever(pipeline, program)) for program in programs]
        try:
            yield pipeline
        finally:
            # The services go together, and before the brokers, so that they can say goodbye; a broker goes before
            # the one that it was started after.
            brokers = [w for w, program in zip(watchers, programs, strict=True) if program.module.split(".")[0] == "broker"]
            for ending in ([w for w in watchers if w not in brokers], *([w] for w in reversed(brokers))):
                for watcher in ending:
                    watcher.cancel()
                await asyncio.gather(*ending, return_exceptions=True)


async def _forever(pipeline: Pipeline, program: Program) -> None:
    await pipeline.watch(program)
    raise PipelineError(f"{program.name} ended by itself while the run still needs it")


async def _start(program: Program, log: IO[bytes]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        program.module,
        *program.arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **program.environment},
        start_new_session=True,  # Ctrl-C reaches us alone, and we stop them in order
        preexec_fn=_die_with_parent,
    )


def _die_with_parent() -> None:
    """Linux: the child gets SIGKILL when this process dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(GRACE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
