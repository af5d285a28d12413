"""From the bus to what is watched: each message handed to the fold, and nothing said on the bus."""

from __future__ import annotations

import asyncio
import time

import structlog

from services.bus import Bus, BusError, topics
from services.bus.messages import ROOT, Iteration, Memory, Message, Progress, SetMode, State, Stopping, Timing, Votes
from services.devices import LEVEL
from services.monitor.core.known import setting
from services.monitor.core.watched import Refused, Watched
from services.trainer.core.ledger import LayerRow, Row

log = structlog.get_logger()

TOPICS = (f"{ROOT}/+/state/#", f"{ROOT}/+/event/#", f"{ROOT}/+/down/mode")
"""What is for watching, and the retained word of how a device is to run. Data is not listened to."""
INBOX_BYTES = 32 << 20
MESSAGE_BYTES = 4 << 20
AGAIN_S = 2.0


async def watch(broker: str, watched: Watched) -> None:
    """Take in messages until cancelled. A broker that is away is waited for: this is no part of any run."""
    while True:
        try:
            async with Bus(
                broker, "monitor", "all", passive=True, give_up_s=3600.0, inbox_bytes=INBOX_BYTES, message_limit=MESSAGE_BYTES
            ) as bus:
                await bus.subscribe(*TOPICS)
                async for topic, message in bus:
                    take(watched, topics.parse(topic), message, time.time())
        except BusError as error:
            log.warning("the broker is out of reach; it is tried again", error=str(error))
            await asyncio.sleep(AGAIN_S)


def take(watched: Watched, topic: topics.Topic, message: Message, now: float) -> None:
    """One message. What makes no sense is counted and left out."""
    try:
        _take(watched, topic, message, now)
    except Refused as error:
        watched.refused += 1
        log.debug("left out", topic=topic.key, device=topic.device, reason=str(error))
    except Exception:  # a mistake of ours on one message ends no watching of all the others
        watched.refused += 1
        log.error("message failed", topic=topic.key, device=topic.device, exc_info=True)


def _take(watched: Watched, topic: topics.Topic, message: Message, now: float) -> None:
    device = topic.device
    match message:
        case State():
            version = message.version
            watched.state(device, topic.name, online=message.online, version=version, samples=message.samples, now=now)
        case Memory():
            if not LEVEL.fullmatch(message.service):
                raise Refused(f"service {message.service[:64]!r} is no name")
            watched.memory(device, message.service, message.resident_bytes, now)
        case SetMode():
            told = setting(message.mode, message.rates, message.scheme, message.seed, message.known)
            watched.mode(device, message.session, told, now)
        case Progress():
            watched.progress(
                device,
                message.session,
                message.phase,
                message.step,
                message.steps,
                message.value,
                faults=message.faults,
                now=now,
                metric=message.metric,
            )
        case Stopping():
            watched.stopping(device, message.session, message.by, ended=message.ended, now=now)
        case Timing():
            watched.timing(device, message.session, message, now)
        case Votes():
            watched.votes(device, message.session, message.iteration, message.layers, now)
        case Iteration():
            watched.iteration(
                device, message.session, _row(message), network=message.network, steps=message.steps,
                model_bytes=message.model_bytes, now=now,
            )  # fmt: skip


def _row(message: Iteration) -> Row:
    """The trainer's row, without what the events of its iteration add to it."""
    wrong = [layer for layer in message.layers if not layer.faithful]
    return Row(
        iteration=message.iteration,
        loss=message.loss,
        accuracy=message.accuracy,
        grad_norm=message.grad_norm,
        wall_s=message.wall_s,
        attempts=message.attempts,
        elements=sum(layer.elements for layer in message.layers),
        mismatched=sum(layer.elements for layer in wrong),
        mismatched_layers=len(wrong),
        repaired=sum(layer.repaired for layer in message.layers),
        input_bytes=message.input_bytes,
        layers=[LayerRow(layer.index, repaired=layer.repaired, faithful=layer.faithful) for layer in message.layers],
    )
