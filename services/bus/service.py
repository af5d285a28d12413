"""What every service's ``__main__`` does: options, logs, signals, one clear line and a non-zero exit when it cannot go on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal, NamedTuple, NoReturn

import structlog
import typer

from services.bus.address import BusError
from services.bus.client import Bus

Broker = Annotated[
    str,
    typer.Option(
        envvar="R2F_BROKER", help="mqtt://[user:password@]host:port, or mqtts:// for TLS. The password may be in R2F_PASSWORD."
    ),
]
Device = Annotated[str, typer.Option(envvar="R2F_DEVICE", help="Name of the device, as in its topics r2f/v1/DEVICE/...")]
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

PATIENCE_S = 120.0
DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
DEFAULT_DEVICE = "edge-0"


ARENA_MB = 256
ARENA_AGE_S = 3600.0
"""Behind a slow link a tensor may wait long for its reader. One that died is noticed by its successor, not by this."""
ArenaMb = Annotated[
    int, typer.Option(min=0, help="Shared memory for tensors under way, MiB; a sender that has filled it waits for readers.")
]


class Common(NamedTuple):
    """The options that every service has."""

    broker: str
    device: str
    json_logs: bool | None = None
    log_level: str = "info"
    patience_s: float = PATIENCE_S


def run(
    service: str,
    common: Common,
    serve: Callable[[Bus], Awaitable[None]],
    *,
    arena_mb: int = ARENA_MB,
    readers: Sequence[str] = (),
) -> None:
    """Open the bus as ``service`` and serve until SIGINT or SIGTERM; ``readers`` are the services that open its tensors.

    At SIGTERM it says goodbye and then ends by that signal: exit code 0 is for work that is done. Exits with 1 and one line
    on stderr for an error that the user can mend (BusError, ValueError, OSError); what is a mistake of ours has its traceback
    in the log before that line.
    """
    configure_logs(common.json_logs, common.log_level)
    structlog.contextvars.bind_contextvars(service=service, device=common.device)
    try:
        bus = Bus(
            common.broker,
            service,
            common.device,
            arena_bytes=arena_mb << 20,
            arena_age_s=ARENA_AGE_S,
            readers=readers,
            give_up_s=common.patience_s,
        )
        stopped = asyncio.run(_serve(bus, serve))
    except (BusError, ValueError, OSError) as error:
        fail(service, error)
    except Exception as error:
        structlog.get_logger().error("ended by a mistake of its own, please report it", exc_info=error)
        fail(service, error)
    if stopped == signal.SIGTERM:
        end_by_sigterm()


def end_by_sigterm() -> None:
    """End by the SIGTERM that this process heard and obeyed, so that whoever watches it knows that it was not done."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


async def _serve(bus: Bus, serve: Callable[[Bus], Awaitable[None]]) -> signal.Signals | None:
    """Serve; returns the signal that ended it, None where the service was done."""
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
        async with bus:
            await serve(bus)
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
    print(f"{service}: {said}", file=sys.stderr)
    raise SystemExit(1)


def configure_logs(as_json: bool | None, level: str = "info") -> None:
    """structlog to stderr: for people on a terminal, JSON lines elsewhere, unless told."""
    lines = not sys.stderr.isatty() if as_json is None else as_json
    renderer: structlog.types.Processor = structlog.processors.JSONRenderer() if lines else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if lines else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
