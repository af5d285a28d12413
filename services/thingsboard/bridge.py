"""The bridge: what the bus tells goes to ThingsBoard, and what ThingsBoard asks goes to whoever carries it out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Final, NamedTuple, Protocol

import structlog

from services import devices
from services.bus import Bus, BusError, topics
from services.bus.address import Address
from services.bus.messages import ROOT, Message, Progress, SetMode, State, Timing
from services.thingsboard.core import watched
from services.thingsboard.core.asked import Setting
from services.thingsboard.core.outbox import Outbox
from services.thingsboard.core.values import Value
from services.thingsboard.core.watched import Watched
from services.thingsboard.gateway import Gateway

log = structlog.get_logger()

LISTENS: Final = ("state/+", "event/+", "down/mode")
INBOX_BYTES: Final = 32 << 20
MESSAGE_BYTES: Final = 4 << 20
AGAIN_S: Final = 2.0
LOGGED: Final = 100
LAST_S: Final = 3.0
"""At the end, for what is still to be told."""


class Options(NamedTuple):
    """Where both sides are and whose devices are told of."""

    broker: str
    thingsboard: Address
    devices: str = "*"
    """Names or patterns, with commas."""


class Takes(Protocol):
    """Who carries out what ThingsBoard asks."""

    def take(self, topic: str, payload: bytes) -> None:
        """A message of ThingsBoard's. Never raises: what is wrong with it is answered, or counted and logged."""
        ...

    def begin(self, device: str) -> None:
        """A session of ThingsBoard's knows of the device; for "", it has begun."""
        ...

    def heard(self, device: str, timing: Timing) -> None:
        """A stage of a pass was told on the bus."""
        ...

    async def serve(self) -> None:
        """Carry out until cancelled."""
        ...


class Bridge:
    """All that is known of the devices, and what of it waits for ThingsBoard."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.time) -> None:
        self.options = options
        self.clock = clock
        self.devices: dict[str, Watched] = {}
        self.settings: dict[str, tuple[str, int, Setting]] = {}
        """The retained ``down/mode`` of each device: session, sequence number, setting."""
        self.own: dict[str, str] = {}
        """The boot under which this bridge last took each device's lease."""
        self.outbox = Outbox()
        self.gateway = Gateway(options.thingsboard, self.outbox, self._asked, self._begin)
        self.commands: Takes | None = None
        self.left_out = 0
        """Messages of ThingsBoard's that nobody took."""
        self.failed = 0
        """Messages of the bus that a mistake of ours was made on."""
        self._counted: dict[str, int] = {}

    async def serve(self) -> None:
        """Bridge until cancelled. Raises BusError where ThingsBoard refuses the token, or another client takes the session."""
        work = [self.gateway.serve(), self._watch(), self._every_second()]
        if self.commands is not None:
            work.append(self.commands.serve())
        tasks = [asyncio.create_task(one) for one in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except asyncio.CancelledError:
            await self._finish()
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish(self) -> None:
        """Tell what there is, for three seconds at most where ThingsBoard is there."""
        for name in self.devices:
            self._points(name, at_once=True)
        self.gateway.wake()
        end = time.monotonic() + LAST_S
        while self.gateway.there and not self.gateway.idle and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    # ---- up ----

    async def _watch(self) -> None:
        """Take in what the bus tells. A broker that is away is waited for: this is no part of any run."""
        while True:
            try:
                async with Bus(
                    self.options.broker, "thingsboard", "all", passive=True, give_up_s=3600.0,
                    inbox_bytes=INBOX_BYTES, message_limit=MESSAGE_BYTES,
                ) as bus:  # fmt: skip
                    await bus.subscribe(*(f"{ROOT}/+/{name}" for name in LISTENS))
                    async for topic, message in bus:
                        self._taken(topics.parse(topic), message)
            except BusError as error:
                log.warning("the bus is out of reach; it is tried again", error=str(error))
                await asyncio.sleep(AGAIN_S)

    def _taken(self, topic: topics.Topic, message: Message) -> None:
        """One message of the bus; a mistake of ours on it ends no watching of all the others."""
        try:
            self.take(topic, message)
        except Exception:
            self.failed += 1
            log.error("message failed", topic=topic.key, device=topic.device, failed=self.failed, exc_info=True)

    def take(self, topic: topics.Topic, message: Message) -> None:
        """One message of the bus."""
        name, now = topic.device, int(self.clock() * 1000)
        if not devices.matches(self.options.devices, name):
            return
        of = self.devices.get(name)
        if of is None:
            if len(self.devices) == devices.MOST:
                return
            of = self.devices[name] = Watched()
        match message:
            case State() if message.service == topic.name:
                self._state(name, of, message)
            case SetMode():
                setting = Setting(message.mode, message.rates, message.seed, message.scheme, message.known)
                self.settings[name] = (message.session, message.seq, setting)
                self._tell(name, watched.mode(of, message.session, *setting[:2], setting.seed, setting.scheme, setting.known))
            case Progress():
                point = watched.progress(
                    of, message.session, message.phase, message.step, message.steps, message.value, message.grad_norm,
                    message.faults, now, message.metric,
                )  # fmt: skip
                self._points(name, at_once=message.phase == "done")
                self.outbox.add(name, point)
                self.gateway.wake()
            case Timing():
                if self.commands is not None:
                    self.commands.heard(name, message)
                for ended in watched.timing(of, message, now):
                    self.outbox.add(name, ended)

    def _state(self, name: str, of: Watched, message: State) -> None:
        if message.service == "trainer" and message.boot == self.own.get(name):
            return
        before = of.online
        found = watched.state(of, message.service, message.online, message.boot, message.version, message.samples)
        if message.service == "agent" and of.online != before:
            if of.online:
                self._present(name)
            else:
                self._points(name, at_once=True)
                self.outbox.absent(name)
        if message.service == "trainer":
            of.trainer_seen = float("inf") if message.online else time.monotonic()
        self._tell(name, found)

    def _present(self, name: str) -> None:
        self.outbox.present(name)
        if self.commands is not None:
            self.commands.begin(name)

    def _tell(self, name: str, attributes: dict[str, Value]) -> None:
        self.outbox.tell(name, attributes)
        self.gateway.wake()

    def _points(self, name: str, *, at_once: bool = False) -> None:
        for point in watched.due(self.devices[name], int(self.clock() * 1000), at_once=at_once):
            self.outbox.add(name, point)

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(watched.SECOND_MS / 1000)
            for name in self.devices:
                self._points(name)
            self._tell_counts()
            self.gateway.wake()

    def _tell_counts(self) -> None:
        """What was left out, as the gateway's own attributes, when it has changed."""
        counts = {f"bridge_{name}": count for name, count in self.outbox.counts.items()}
        if self.left_out:
            counts["bridge_left_out"] = self.left_out
        if counts != self._counted:
            log.warning("left out", **counts)
            self._counted = counts
            self.outbox.tell("", counts)

    # ---- down ----

    def _begin(self) -> None:
        """A new session: ThingsBoard knows of no device that is there, and may have lost everything."""
        self.outbox.tell("", {"bridge_version": f"r2f {version('r2f')}", "bridge_commands": self.commands is not None})
        if self.commands is not None:
            self.commands.begin("")
        for name, of in self.devices.items():
            if of.online:
                self._present(name)
            else:
                self.outbox.absent(name)
            self.outbox.tell(name, of.attributes)

    def _asked(self, topic: str, payload: bytes) -> None:
        if self.commands is not None:
            self.commands.take(topic, payload)
            return
        self.leave_out(topic, "this bridge only tells; start it with --commands to have it carry out")

    def leave_out(self, topic: str, reason: str) -> None:
        """Count a message of ThingsBoard's that is dropped. The first are logged, and then some: it may send any number."""
        self.left_out += 1
        if self.left_out <= LOGGED or self.left_out % 1000 == 0:
            log.warning("a message of ThingsBoard's is dropped", topic=topic[:200], reason=reason[:500], so_far=self.left_out)
