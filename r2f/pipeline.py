"""Broker and services as processes of this host: started, watched, started again when killed, stopped together."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from broker.child import dying_with_us, environment, python
from broker.ending import stop
from services.bus.service import STOPPED, Stopped

RESTARTS = 8
"""How often a process that is killed soon after its start is started again before the run is given up."""
FORGIVEN_S = 5.0
"""For each such time that it ran, one of those is forgotten: what kills it from without comes now and then, what is wrong with
it comes at once."""
FRUITLESS = 64
"""How often it is started again, however long it ran each time, while the run does not get on: as where memory is short."""
LONGEST_PAUSE_S = 1.6
"""Before a process is started again."""
GRACE_S = 5.0
"""From SIGTERM to SIGKILL."""


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
    """Soon after one another."""
    fruitless: int = 0
    """Since the run got on."""
    began_at: int = 0
    """Length of the log when it was last started."""


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

    def got_on(self) -> None:
        """The run did something that it had not done before, so nothing that was killed until now keeps it from that."""
        for child in self._children.values():
            child.restarts = child.fruitless = 0

    def argument(self, name: str, option: str) -> str:
        """Value of an option that a program was started with, such as the broker's ``--port``."""
        arguments = self._children[name].program.arguments
        return arguments[arguments.index(option) + 1]

    async def watch(self, program: Program, *, needed: bool = False) -> None:
        """Run a program to its successful end, starting it again when a signal killed it.

        ``needed``: it has no such end while the run goes on, so it is started again then too. Raises PipelineError with the
        last line of its log when it gave up by itself, or was killed too often; Stopped when somebody had it stopped.
        """
        child = _Child(program, self._folder / f"{program.name}.log")
        self._children[program.name] = child
        while True:
            began = time.monotonic()
            code = await self._run(child)
            if code == 0 and not needed:
                return
            if code == STOPPED and not needed:
                raise Stopped(_last_words(child).removeprefix(f"{program.name}: "))
            if code > 0:
                raise PipelineError(_last_words(child) or f"{program.name} ended with {code}; see {child.log}")
            child.restarts = max(0, child.restarts - int((time.monotonic() - began) / FORGIVEN_S)) + 1
            child.fruitless += 1
            if child.restarts > RESTARTS or child.fruitless > FRUITLESS:
                often = f"{child.fruitless} times, and the run did not get on; see {child.log}"
                raise PipelineError(f"{program.name} was ended {often}")
            self._on_restart(program.name)
            # Some chance in it: of several that were killed together not all come back at once.
            await asyncio.sleep(min(LONGEST_PAUSE_S, 0.2 * child.restarts) * random.uniform(0.5, 1.5))

    def sweep(self) -> None:
        """Remove the logs of programs that had nothing to say."""
        for child in self._children.values():
            if child.log.exists() and child.log.stat().st_size == 0:
                child.log.unlink()

    async def _run(self, child: _Child) -> int:
        with child.log.open("ab") as log:
            child.began_at = log.seek(0, os.SEEK_END)
            starting = asyncio.ensure_future(_start(child.program, log))
            try:
                child.process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                await stop(await starting, GRACE_S)  # a process half started would be nobody's
                raise
        try:
            return await child.process.wait()
        finally:
            await stop(child.process, GRACE_S)


@asynccontextmanager
async def running(programs: Sequence[Program], folder: Path, on_restart: Callable[[str], None]) -> AsyncIterator[Pipeline]:
    """The programs, for as long as the block runs; their output goes to ``folder/{name}.log``.

    A program that cannot go on while the block runs ends the block with PipelineError. All are stopped at its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline(folder, on_restart)
    async with asyncio.TaskGroup() as tasks:
        watchers = [tasks.create_task(pipeline.watch(program, needed=True)) for program in programs]
        try:
            yield pipeline
        finally:
            # The services go together, and before the brokers, so that they can say goodbye; a broker goes before
            # the one that it was started after.
            brokers = [w for w, program in zip(watchers, programs, strict=True) if program.module.split(".")[0] == "broker"]
            for ending in ([w for w in watchers if w not in brokers], *([w] for w in reversed(brokers))):
                for watcher in ending:
                    if not watcher.cancelling():  # a second time would end its wait for the process that it stops
                        watcher.cancel()
                await asyncio.gather(*ending, return_exceptions=True)
            pipeline.sweep()


async def _start(program: Program, log: IO[bytes]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *dying_with_us(python(program.module, *program.arguments), signal.SIGKILL),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**environment(), **program.environment},
        start_new_session=True,  # Ctrl-C reaches us alone, and we stop them in order
    )


def _last_words(child: _Child) -> str:
    said = child.log.read_bytes()[child.began_at :].decode(errors="replace")
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else ""
