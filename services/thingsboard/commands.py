"""ThingsBoard's calls and shared attributes: each taken in, put in its device's line, carried out, answered."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import structlog

from services.bus import BusError
from services.bus.messages import Timing
from services.thingsboard.bridge import Bridge
from services.thingsboard.carrying_out import Carrier, NotDone, wanted
from services.thingsboard.core import asked
from services.thingsboard.core.answers import Answers, Key
from services.thingsboard.core.asked import CONFIGURES, DeployModel, GetData, SetAIoTMode
from services.thingsboard.core.outbox import GATEWAY
from services.thingsboard.core.values import text
from services.thingsboard.core.watched import Point
from services.thingsboard.firmware import Firmwares
from services.thingsboard.models import Models

log = structlog.get_logger()

WAITING: Final = 16
"""Commands of one device; more are refused."""
ANSWER_S: Final = 8.0
"""ThingsBoard waits 10 s for an answer; what takes longer is accepted, and its end told as telemetry."""
SETTLE_S: Final = 0.2
"""Of quiet, after which shared attributes that changed are one mode."""

Job = Callable[[], Awaitable[None]]


class Commands:
    """Takes what ThingsBoard asks. What is wrong is answered where it can be, else counted and logged."""

    def __init__(self, bridge: Bridge, carrier: Carrier) -> None:
        self.bridge = bridge
        self.carrier = carrier
        self.answers = Answers()
        self._lines: dict[str, asyncio.Queue[Job]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._shared: dict[str, dict[str, Any]] = {}
        self._settling: dict[str, asyncio.TimerHandle] = {}
        self._accepting: dict[Key, asyncio.TimerHandle] = {}
        self._requests = itertools.count(1)

    async def serve(self) -> None:
        """Deploy firmware as it is released, until cancelled; the devices' lines are worked on meanwhile."""
        firmwares = self.carrier.firmwares
        try:
            while True:
                await firmwares.fresh.wait()
                firmwares.fresh.clear()
                await self._release()
        finally:
            for timer in (*self._settling.values(), *self._accepting.values()):
                timer.cancel()
            for worker in self._workers.values():
                worker.cancel()
            await asyncio.gather(*self._workers.values(), return_exceptions=True)

    # ---- taking in ----

    def begin(self, device: str) -> None:
        """A session knows of the device, or, for "", has begun: what changed meanwhile is not said again, so ask."""
        if not device:
            self.carrier.firmwares.begin()
            return
        request = {"id": next(self._requests), "device": device, "client": False, "keys": list(CONFIGURES)}
        self.bridge.outbox.word(f"{GATEWAY}/attributes/request", request)

    def heard(self, device: str, timing: Timing) -> None:
        """A stage of a pass was told on the bus."""
        self.carrier.heard(device, timing)

    def take(self, topic: str, payload: bytes) -> None:
        """A message of ThingsBoard's."""
        try:
            self._take(topic, payload)
        except ValueError as error:
            self.bridge.leave_out(topic, str(error))

    def _take(self, topic: str, payload: bytes) -> None:
        if topic == f"{GATEWAY}/rpc":
            self._call(asked.decode(payload, asked.Asked), payload)
        elif topic == f"{GATEWAY}/attributes":
            updated = asked.decode(payload, asked.Updated)
            self._update(updated.device, updated.data)
        elif topic == f"{GATEWAY}/attributes/response":
            found = asked.decode(payload, asked.Answered)
            # All are asked for, so one value without its name does not come.
            self._update(found.device, found.values)
        elif not self.carrier.firmwares.take(topic, payload):
            raise ValueError("no topic that is listened to")

    def _known(self, device: str) -> None:
        of = self.bridge.devices.get(device)
        if of is None or not of.online:
            raise ValueError(f"{device} is not on the bus")

    def _call(self, call: asked.Asked, payload: bytes) -> None:
        key = Key(call.device, call.data.id, hashlib.sha256(payload).digest())
        if not self.answers.begin(key, time.monotonic()):
            if (given := self.answers.given(key)) is not None:
                self._answer(key, given)
            return
        try:
            self._known(call.device)
            what = wanted(call.data)
        except LookupError as error:
            self._give(key, {"error": str(error)})
        except ValueError as error:
            self._give(key, {"ok": False, "error": str(error)})
        else:
            if not self._put(call.device, lambda: self._carry_out(key, what)):
                self._give(key, {"ok": False, "error": f"{WAITING} commands of {call.device} wait already"})
                return
            self._accepting[key] = asyncio.get_running_loop().call_later(ANSWER_S, self._accept, key)

    def _update(self, device: str, update: dict[str, Any]) -> None:
        self._known(device)
        before = self._shared.get(device, {})
        self._shared[device] = now = asked.changed(before, update)
        if any(key in update for key in CONFIGURES) or now != before:
            if (timer := self._settling.get(device)) is not None:
                timer.cancel()
            loop = asyncio.get_running_loop()
            self._settling[device] = loop.call_later(SETTLE_S, self._settled, device)

    def _settled(self, device: str) -> None:
        self._settling.pop(device, None)
        if not self._put(device, lambda: self._configure(device)):
            self.bridge.outbox.tell(device, {"config_error": f"{WAITING} commands of {device} wait already; set it again"})
            self.bridge.gateway.wake()

    # ---- carrying out ----

    def _put(self, device: str, job: Job) -> bool:
        """Puts a job at the end of a device's line; whether there was room."""
        line = self._lines.setdefault(device, asyncio.Queue(WAITING))
        if line.full():
            return False
        line.put_nowait(job)
        if device not in self._workers:
            self._workers[device] = asyncio.create_task(self._work(line))
        return True

    async def _work(self, line: asyncio.Queue[Job]) -> None:
        while True:
            job = await line.get()
            try:
                await job()
            except Exception:
                log.error("a command failed by a mistake of ours, please report it", exc_info=True)

    async def _carry_out(self, key: Key, what: SetAIoTMode | DeployModel | GetData) -> None:
        answer = await self._done(key.device, what)
        self._accepting.pop(key).cancel()
        if self.answers.given(key) is None:
            self._give(key, answer)
            return
        self.answers.give(key, answer, time.monotonic())
        self.bridge.outbox.add(key.device, Point(int(self.bridge.clock() * 1000), {f"rpc_{key.id}": answer}))
        self.bridge.gateway.wake()

    def _accept(self, key: Key) -> None:
        """ThingsBoard does not wait longer for a call that is still in its line, or under way."""
        self._give(key, {"accepted": True, "job": key.id}, done=False)

    async def _done(self, device: str, what: SetAIoTMode | DeployModel | GetData) -> dict[str, Any]:
        """What a command came to, or why it came to nothing."""
        try:
            match what:
                case SetAIoTMode():
                    found = await self.carrier.set_mode(device, asked.asked_setting(what, self.carrier.setting(device)[2]))
                case DeployModel():
                    found = await self.carrier.deploy(device, what)
                case GetData():
                    found = await self.carrier.get_data(device, what)
        except (ValueError, OSError, BusError) as error:
            log.warning("not carried out", device=device, command=type(what).__name__, reason=str(error))
            return {"ok": False, "error": text(str(error))}
        except Exception as error:
            log.error("a command failed by a mistake of ours, please report it", exc_info=True)
            return {"ok": False, "error": f"a mistake of the bridge's: {type(error).__name__}; its log has more"}
        log.info("carried out", device=device, command=type(what).__name__)
        return found

    async def _configure(self, device: str) -> None:
        """The shared attributes as they are now, as one mode, where they ask for another than there is."""
        _, _, before = self.carrier.setting(device)
        try:
            after = asked.configured(self._shared[device], before)
            if after != before:
                await self.carrier.set_mode(device, after)
            error = ""
        except (ValueError, BusError) as failed:
            log.warning("not configured", device=device, reason=str(failed))
            error = text(str(failed))
        self.bridge.outbox.tell(device, {"config_error": error})
        self.bridge.gateway.wake()

    async def _release(self) -> None:
        """A firmware that is new, onto every device that is there."""
        firmwares = self.carrier.firmwares
        try:
            network = await firmwares.network()
            there = [name for name, of in self.bridge.devices.items() if of.online]
            if not there:
                raise NotDone("no device is on the bus; call deployModel with ota when one is")
            firmwares.tell("UPDATING")
            for device in there:
                await self._in_line(device, lambda device=device: self.carrier.deploy_network(device, network))  # type: ignore[misc]
        except (ValueError, OSError, BusError) as error:
            firmwares.tell("FAILED", str(error))
            return
        firmwares.given()
        firmwares.tell("UPDATED")

    async def _in_line(self, device: str, work: Callable[[], Awaitable[Any]]) -> None:
        """Work in a device's line; raises what it raises, NotDone where there is no room."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def job() -> None:
            try:
                await work()
            except Exception as error:
                ended.set_exception(error)
            else:
                ended.set_result(None)

        if not self._put(device, job):
            raise NotDone(f"{WAITING} commands of {device} wait already")
        await ended

    # ---- answering ----

    def _give(self, key: Key, answer: dict[str, Any], *, done: bool = True) -> None:
        self.answers.give(key, answer, time.monotonic(), done=done)
        self._answer(key, answer)

    def _answer(self, key: Key, answer: dict[str, Any]) -> None:
        topic, (device, number, _) = f"{GATEWAY}/rpc", key
        try:
            self.bridge.outbox.word(topic, {"device": device, "id": number, "data": answer})
        except ValueError as error:
            self.bridge.outbox.word(topic, {"device": device, "id": number, "data": {"ok": False, "error": str(error)}})
        self.bridge.gateway.wake()


def commanding(bridge: Bridge, broker: str, models: Path | None) -> Commands:
    """What carries out a bridge's commands. ``broker``: the bus, as an account that may write what a server does."""
    firmwares = Firmwares(bridge.gateway, bridge.outbox, bridge.clock)
    return Commands(bridge, Carrier(bridge, broker, Models(models), firmwares))
