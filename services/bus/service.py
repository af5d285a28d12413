"""What every service's ``__main__`` does: options, logs, signals, one clear line and a non-zero exit when it cannot go on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import structlog
import typer

from services import devices, logs, memory
from services.bus import audit, topics
from services.bus.address import BusError
from services.bus.client import Bus
from services.bus.keys import OPTION, VARIABLE
from services.bus.messages import ROOT, Memory, State
from services.passwords import no_password
from services.shown import plain

log = structlog.get_logger()

Broker = Annotated[
    str,
    typer.Option(
        envvar="R2F_BROKER",
        callback=no_password,
        help="mqtt://[user@]host:port, or mqtts:// for TLS; the folder R2F_IDENTITY has the certificates for that.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        envvar="R2F_DEVICE", help="Name of the device, as in its topics r2f/v1/DEVICE/...; several with commas share a process."
    ),
]
JsonLogs = Annotated[
    bool | None,
    typer.Option("--json-logs/--console-logs", help="Logs as JSON lines or for people [default: people on a terminal]"),
]

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option(envvar="R2F_LOG_LEVEL", help="The least that is worth a line.")
]
Patience = Annotated[
    float, typer.Option(min=0.1, envvar="R2F_PATIENCE", help="Seconds to wait for a broker that is away, at first and later.")
]

SigningKey = Annotated[
    Path | None,
    typer.Option(
        "--signing-key-file", envvar=VARIABLE, help="Keys of devices (docs/security.md): sign messages, refuse unsigned ones."
    ),
]

AuditLog = Annotated[
    Path | None,
    typer.Option(envvar=audit.VARIABLE, help="File of JSON lines: who set what, and who was refused (docs/security.md)."),
]

PATIENCE_S = 120.0
DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
DEFAULT_DEVICE = "edge-0"


MEMORY_S = (10.0, 60.0)
STOPPED = 3
"""Exit code of what was stopped by ``server/stop``: nothing failed, and it is not done."""
ARENA_MB = 256
ARENA_AGE_S = 3600.0
"""Behind a slow link a tensor may wait long for its reader. One that died is noticed by its successor, not by this."""
ArenaMb = Annotated[
    int, typer.Option(min=0, help="Shared memory for tensors under way, MiB; a sender that has filled it waits for readers.")
]


class StartOver(RuntimeError):
    """This process cannot go on, and one that is started in its place can: it ends by SIGTERM, as if somebody had ended it."""


class Stopped(RuntimeError):
    """Somebody had this work stopped, in order: it ends with one line, which says who, and exit code ``STOPPED``."""


class Common(NamedTuple):
    """The options that every service has."""

    broker: str
    device: str
    json_logs: bool | None = None
    log_level: str = "info"
    patience_s: float = PATIENCE_S
    signing_key_file: Path | None = None
    audit_log: Path | None = None


def run(
    service: str,
    common: Common,
    serve: Callable[[Bus], Awaitable[None]],
    *,
    arena_mb: int = ARENA_MB,
    readers: Sequence[str] = (),
    part: tuple[int, int] = (0, 1),
) -> None:
    """Open the bus as ``service`` and serve until SIGINT or SIGTERM; ``readers`` are the services that open its tensors.

    Where ``common`` names several devices, each has a bus of its own and ``serve`` runs on each, side by side: one that fails
    ends with a line in the log, the others go on. ``part`` is (number, processes), numbers from 0: of the devices that are
    named, or announced and match a pattern, those are served that fall to this one of so many processes (``devices.owner``).

    At SIGTERM it says goodbye and then ends by that signal: exit code 0 is for work that is done. Exits with 1 and one line
    on stderr for an error that the user can mend (BusError, ValueError, OSError); what is a mistake of ours has its traceback
    in the log before that line.
    """

    async def one(device: str) -> None:
        structlog.contextvars.bind_contextvars(device=device)
        async with bus_of(service, common, device, arena_mb=arena_mb, readers=readers) as bus, telling_memory(bus):
            await serve(bus)

    async def work() -> None:
        if devices.is_pattern(devices.checked(common.device)):
            await several(_announced(common, part), one)
            return
        names = [name for name in devices.listed(common.device) if devices.owner(name, part[1]) == part[0]]
        if not names:
            raise ValueError(f"--device {common.device}: none of these is this process's part; name more, or start fewer")
        await (one(names[0]) if len(names) == 1 else several(_each(names), one))

    run_all(service, common, work())


def run_all(service: str, common: Common, work: Coroutine[Any, Any, None]) -> None:
    """Logs, signals and exit codes of a service, as ``run`` has them, around work that opens its buses itself."""
    logs.configure(common.json_logs, common.log_level)
    structlog.contextvars.bind_contextvars(service=service)
    try:
        stopped = asyncio.run(until_signal(work))
    except (BusError, ValueError, OSError) as error:
        fail(service, error)
    except Stopped as error:
        print(f"{service}: {error}", file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except StartOver as error:
        log.warning("starting over", reason=str(error))
        end_by_sigterm()
        return
    except Exception as error:
        log.error("ended by a mistake of its own, please report it", exc_info=error)
        fail(service, error)
    if stopped == signal.SIGTERM:
        end_by_sigterm()


def end_by_sigterm() -> None:
    """End by the SIGTERM that this process heard and obeyed, so that whoever watches it knows that it was not done."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


def bus_of(service: str, common: Common, device: str, *, arena_mb: int = ARENA_MB, readers: Sequence[str] = ()) -> Bus:
    """A service's Bus for one device, not connected yet. Raises ValueError for options that mean nothing."""
    bus = Bus(
        common.broker,
        service,
        device,
        arena_bytes=arena_mb << 20,
        arena_age_s=ARENA_AGE_S,
        readers=readers,
        signing_key_file=common.signing_key_file,
        audit_log=common.audit_log,
        give_up_s=common.patience_s,
    )
    _say("messages are signed" if bus.key_name(device) else f"messages are not signed: no {OPTION}")
    return bus


@cache
def _say(once: str) -> None:
    log.info(once)


@contextlib.asynccontextmanager
async def telling_memory(bus: Bus) -> AsyncIterator[None]:
    """While the block runs, whoever watches hears what memory this process holds: when it has changed by a tenth, but not more
    often than every ``MEMORY_S[0]`` seconds, for events cross the link too; else every ``MEMORY_S[1]``."""

    async def tell() -> None:
        said, at = 0, 0.0
        while True:
            held, now = memory.resident(), time.monotonic()
            if abs(held - said) * 10 > said or now - at >= MEMORY_S[1]:
                said, at = held, now
                await bus.publish("event/memory", Memory(session="", service=bus.service, resident_bytes=held))
            await asyncio.sleep(MEMORY_S[0])

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait([telling])


async def several(names: AsyncIterator[str], one: Callable[[str], Awaitable[None]]) -> None:
    """``one`` for each device as it comes, side by side. One that fails is logged and the others go on.

    Raises the first failure once nothing goes on any more.
    """
    failures: list[Exception] = []

    async def guarded(name: str) -> None:
        try:
            await one(name)
        except Exception as error:
            mine = not isinstance(error, BusError | ValueError | OSError)
            log.error("this device is given up, others go on", device=name, error=str(error), exc_info=mine)
            failures.append(error)

    tasks: list[asyncio.Task[None]] = []
    try:
        async for name in names:
            tasks.append(asyncio.create_task(guarded(name)))
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if failures:
        raise failures[0]


async def _each(names: Sequence[str]) -> AsyncIterator[str]:
    for name in names:
        yield name


async def _announced(common: Common, part: tuple[int, int]) -> AsyncIterator[str]:
    """The devices of a pattern whose agents are on the bus or come, each once; those alone that are this process's part."""
    known: set[str] = set()
    async with Bus(common.broker, "watch", "all", passive=True, give_up_s=common.patience_s) as bus:
        await bus.subscribe(f"{ROOT}/+/state/agent")
        async for topic, message in bus:
            name = topics.parse(topic).device
            if (
                not isinstance(message, State)
                or not message.online
                or name in known
                or not devices.matches(common.device, name)
            ):
                continue
            if len(known) == devices.MOST:
                raise ValueError(f"--device {common.device}: more than {devices.MOST} devices are announced; name fewer")
            known.add(name)
            if devices.owner(name, part[1]) == part[0]:
                yield name


async def until_signal(work: Coroutine[Any, Any, None]) -> signal.Signals | None:
    """Does the work; returns the signal that ended it, None where it was done."""
    task = asyncio.current_task()
    assert task is not None
    stopped: signal.Signals | None = None

    def stop(number: signal.Signals) -> None:
        nonlocal stopped
        stopped = number
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await work
    except asyncio.CancelledError:
        if stopped is None:
            raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):
                asyncio.get_running_loop().remove_signal_handler(number)
    return stopped


def fail(service: str, error: BaseException) -> NoReturn:
    """One line on stderr, exit 1."""
    structlog.get_logger().debug("stopped", exc_info=error)
    said = str(error) if isinstance(error, BusError | ValueError | OSError) else f"{type(error).__name__}: {error}"
    print(f"{service}: {plain(said)}", file=sys.stderr)
    raise SystemExit(1)
