"""Where messages enter a service: one that is wrong in any way is logged, counted and dropped, and the next one is taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from services.bus import Bus, BusError
from services.bus.messages import REASON, Ack, Message, SetMode

log = structlog.get_logger()


def trace(message: Message) -> str:
    """What a message is part of, by which the log lines of all services on it are found: ``SESSION/ITERATION`` from the command
    that begins an iteration to the model that it ends with, ``SESSION/mode-SEQ`` of a mode, else the session."""
    match message:
        case SetMode():
            return f"{message.session}/mode-{message.seq}"
        case Ack():
            return f"{message.session}/{message.of}-{message.seq}"
    iteration = getattr(message, "iteration", -1)
    return f"{message.session}/{iteration}" if iteration >= 0 else message.session


def cut(reason: str) -> str:
    """A reason as long as a message may have one."""
    return reason if len(reason) <= REASON else f"{reason[: REASON - 3]}..."


def detail(event: str, **fields: object) -> None:
    """A line for those who look closely, where logs are set up: else structlog prints every level into the output of whoever
    uses this as a library."""
    if structlog.is_configured():
        log.debug(event, **fields)


async def answer(bus: Bus, take: Callable[[Message], Awaitable[None]]) -> None:
    """Give every message that arrives to ``take``, in order, until cancelled.

    What ``take`` raises ends with the message: whoever sent it repeats what it needs (docs/bus.md). A ValueError says that
    the message is hostile, damaged, or refers to a tensor that was taken back. Anything else is a fault of this service, so
    its traceback is logged too. A BusError is no message's fault and is raised.
    """
    async for topic, message in bus:
        await guarded(bus, topic, message, take)


async def guarded(bus: Bus, topic: str, message: Message, take: Callable[[Message], Awaitable[None]]) -> None:
    """Give one message to ``take``, as ``answer`` does."""
    with structlog.contextvars.bound_contextvars(trace=trace(message)):
        detail("taken", topic=topic)
        try:
            await take(message)
        except BusError:
            raise
        except ValueError as error:
            bus.reject(topic, str(error))
        except Exception as error:
            log.error("message failed", topic=topic, exc_info=True)
            bus.reject(topic, f"{type(error).__name__}: {error}")
