"""A run of several devices that share one model: the course of ``core.common`` over the bus.

An iteration waits for half of the devices, then ``Fleet.wait_s`` longer for the rest. Who has not sent its batch by then is
left out of this iteration and asked again in the next one; after ``LATE`` of them in a row, or where it fails, it is lost. Who
is lost, or comes later and matches the run's pattern, takes part from the iteration after its agent announces itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final, TypeVar

import structlog
from msgspec.structs import replace

from accelsim.int8 import storage
from accelsim.int8.network import Network
from services import devices
from services.bus import Bus, BusError, service, topics
from services.bus.messages import ROOT, State
from services.trainer import training, waiting
from services.trainer.core import checkpoint, common, job, result, trials
from services.trainer.core import fleet as fleets
from services.trainer.core.course import Batch, Deploy, Learnt, Outcome, Reply, Steps
from services.trainer.core.fleet import Fleet, Shared
from services.trainer.core.job import Job
from services.trainer.core.parts import Replaying
from services.trainer.core.recipe import Plan
from services.trainer.disk import written
from services.trainer.patience import ready_s
from services.trainer.remote import DeviceError
from services.trainer.table1 import Server, serving
from services.trainer.training import Training

log = structlog.get_logger()

C = TypeVar("C")
R = TypeVar("R")

LATE: Final = 3
"""Iterations in a row that a device may miss before it is not asked any more."""


@dataclass(slots=True)
class Member:
    """A device that takes part."""

    name: str
    server: Server
    agent: State
    training: Training
    leaving: AsyncExitStack
    arrived: bool = False
    """Whether its batch is here, which then counts however long the server takes over it."""
    late: int = 0

    @property
    def job(self) -> Job:
        """Its own."""
        return self.training.job


async def run(fleet: Fleet, folder: Path, options: service.Common, path: str, replaying: Replaying | None = None) -> None:
    """The whole run, from wherever an earlier process left it. ``replaying``: see ``Learner``.

    Leaves a ``result.json`` and ``progress.jsonl`` in each device's folder, and in the run's own its result, ``steps.jsonl``
    and ``retrained.safetensors``. Raises DeviceError where no device is left, TrainingDiverged, ValueError for files that do
    not fit together, or Stopped as ``training.run`` does, whichever of the devices was named.
    """
    todo = job.read(folder)
    initial = storage.load(folder / job.NETWORK)
    job.check(todo, initial)
    found = result.read(folder)
    state = training.resumed(folder, todo, initial)
    company = Company(fleet, folder, todo, options)
    try:
        await asyncio.gather(*(company.invite(name) for name in fleet.devices))
        company.admit()
        plan = common.leading({name: one.training.plan for name, one in company.members.items()})
        if found.iterations is None:
            found.iterations = plan.iterations
            await written(lambda: result.write(folder, found))
        company.plan_for(found.iterations)
        plan = company.members[plan.job.device].training.plan
        fleets.truncate(folder, state.iteration)
        await company.every(lambda one: one.training.begin(state.iteration))
        await company.every(lambda one: _before(one, initial))
        async with company.watching():
            known = trials.read(folder, state.iteration, state.config)
            steps = common.course(plan, initial, state, path, folder / checkpoint.FILE, known, replaying)
            outcome = await company.follow(steps, plan, state.iteration, state.config)
        found.selection = outcome.selection
        await written(lambda: storage.save(outcome.network, folder / result.RETRAINED))
        await company.every(lambda one: _after(one, initial, outcome))
        found.model_sha256 = storage.digest(outcome.network)
        await written(lambda: result.write(folder, found))
    finally:
        await company.leave()


def _noted(invited: asyncio.Task[None]) -> None:
    """An invitation that failed as none should is not forgotten in silence."""
    if not invited.cancelled() and (error := invited.exception()) is not None:
        log.error("a device could not be invited", error=repr(error))


async def _before(one: Member, initial: Network) -> None:
    folder = one.training.folder
    await training.before(one.server, one.job, folder, result.read(folder), one.agent, initial)


async def _after(one: Member, initial: Network, outcome: Outcome) -> None:
    folder, done = one.training.folder, one.training.plan.iterations
    found = result.read(folder)
    found.iterations, found.selection = done, outcome.selection
    accuracy = await training.after(one.server, one.job, folder, found, one.agent, initial, outcome)
    metric = one.job.metric or "top1"
    await one.server.publish_progress(one.name, "done", done, done, fmean(accuracy.of(metric)), metric=metric)


class Company:
    """The devices that take part now, and those that come and go."""

    def __init__(self, fleet: Fleet, folder: Path, todo: Job, options: service.Common) -> None:
        self.fleet = fleet
        self.folder = folder
        self.job = todo
        self.options = options
        self.members: dict[str, Member] = {}
        self.turn = asyncio.Lock()
        self.deployed: Deploy | None = None
        self.iterations: int | None = None
        self.lost: dict[str, str] = {}
        """Since the last step, and why."""
        self.late: list[str] = []
        self.joined: list[str] = []
        self._ready: dict[str, Member] = {}
        self._gone: dict[str, str] = {}
        """Devices that were lost, and the boot that their agents had."""
        self._inviting: dict[str, asyncio.Task[None]] = {}

    # ---- who takes part ----

    async def invite(self, name: str) -> None:
        """Take a device's lease and wait until its services are there; it takes part once ``admit`` is called."""
        structlog.contextvars.bind_contextvars(device=name)
        stack = AsyncExitStack()
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / waiting.FAILED).unlink(missing_ok=True)
        try:
            bus = await stack.enter_async_context(service.bus_of("trainer", self.options, name, readers=("codec-server",)))
            await bus.announce(session=self.job.session)
            await stack.enter_async_context(service.telling_memory(bus))
            server = await stack.enter_async_context(serving(bus, self.job.session, patience=self.job.patience_s))
            agent = await server.ready(name, ready_s(self.job.patience_s))
            training.check_device(replace(self.job, device=name), agent)
            plan = common.member(self.job, name, agent.samples["train"], self.iterations)
        except (BusError, ValueError, OSError) as error:
            await stack.aclose()
            self._lose(name, error)
            return
        except BaseException:
            await stack.aclose()
            raise
        self._ready[name] = Member(name, server, agent, Training(server, folder, plan, self.turn), stack)

    def admit(self) -> list[Member]:
        """Have those that are ready take part. Raises DeviceError where nobody does."""
        fresh = list(self._ready.values())
        self.members |= self._ready
        self._ready = {}
        self._need_one()
        return fresh

    def _need_one(self) -> None:
        if not self.members and not self._ready:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.lost.items()))
            raise DeviceError(f"no device is left to learn from: {reasons[:2000]}")

    def plan_for(self, iterations: int) -> None:
        """Give every device the plan of a run of so many iterations."""
        self.iterations = iterations
        for one in self.members.values():
            available = one.agent.samples["train"]
            one.training.plan = common.member(self.job, one.name, available, iterations)
            one.training.job = one.training.plan.job

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Invite, while the block runs, who announces itself: who was lost, and who matches the run's pattern."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        async with Bus(self.options.broker, "watch", "all", passive=True, give_up_s=self.options.patience_s) as bus:
            await bus.subscribe(f"{ROOT}/+/state/agent")
            async for topic, message in bus:
                name = topics.parse(topic).device
                if isinstance(message, State) and message.online and message.samples and self._is_wanted(name, message):
                    self._inviting[name] = task = asyncio.create_task(self.invite(name))
                    task.add_done_callback(_noted)

    def _is_wanted(self, name: str, state: State) -> bool:
        if fleets.TAKEN.fullmatch(name):
            return False
        under_way = name in self._inviting and not self._inviting[name].done()
        if name in self.members or name in self._ready or under_way or len(self.members) >= devices.MOST:
            return False
        if name in self._gone:
            return self._gone[name] != state.boot
        return name in self.fleet.devices or (self.fleet.pattern != "" and devices.matches(self.fleet.pattern, name))

    def _lose(self, name: str, error: BaseException) -> None:
        log.warning("device lost", device=name, reason=str(error))
        self.lost[name] = str(error)
        waiting.give_up(self.folder / name, error)

    async def _part(self, one: Member, error: BaseException) -> None:
        del self.members[one.name]
        self._gone[one.name] = one.agent.boot
        self._lose(one.name, error)
        await one.leaving.aclose()

    async def leave(self) -> None:
        """Say goodbye to all."""
        for task in self._inviting.values():
            task.cancel()
        await asyncio.gather(*self._inviting.values(), return_exceptions=True)
        for one in (*self.members.values(), *self._ready.values()):
            await one.leaving.aclose()

    # ---- what they do ----

    async def every(self, work: Callable[[Member], Coroutine[Any, Any, None]]) -> None:
        """Work with every device, side by side, however long it takes. One that fails is lost; DeviceError where all did."""
        members = list(self.members.values())
        ends = await asyncio.gather(*(work(one) for one in members), return_exceptions=True)
        for one, end in zip(members, ends, strict=True):
            if isinstance(end, BusError | ValueError | OSError):
                await self._part(one, end)
            elif end is not None:
                raise end
        self._need_one()

    async def follow(self, steps: common.Course, plan: Plan, done: int, config: str) -> Outcome:
        """Do what the course says, from iteration ``done`` on."""
        reply: common.Reply = None
        saved, begun = done, time.perf_counter()
        took_part: list[str] = []
        while True:
            async with self.turn:
                command = await asyncio.to_thread(_advanced, steps, reply)
            reply = None
            match command:
                case _End():
                    outcome: Outcome = command.value
                    return outcome
                case Deploy():
                    self.deployed = command
                    await self._deploy(command)
                case common.Each():
                    reply = await self._each(command)
                    if command.teaches:
                        took_part = sorted(reply)
                case common.Tried():
                    await written(partial(trials.write, self.folder, command.trial, config), aside=True)
                case Learnt():
                    stopping = any(one.server.stopped_by(one.name) for one in self.members.values())
                    due = training.is_due(plan, saved, command, stopping)
                    for name in took_part:
                        if name in self.members:
                            await self.members[name].training.note(command, due)
                    await self._book(command, tuple(took_part), time.perf_counter() - begun)
                    begun = time.perf_counter()
                    if due and command.state is not None:
                        await written(partial(checkpoint.write, self.folder, command.state), aside=True)
                        saved = command.iteration + 1
                        for one in self.members.values():
                            await training.end_if_stopped(one.server, one.name, f"after {saved} iterations")

    async def _book(self, learnt: Learnt, took_part: tuple[str, ...], wall: float) -> None:
        line = Shared(
            iteration=learnt.iteration,
            loss=learnt.made.loss,
            grad_norm=learnt.made.norm,
            wall_s=wall,
            devices=took_part,
            late=tuple(self.late),
            lost=dict(self.lost),
            joined=tuple(self.joined),
        )
        await written(lambda: fleets.append(self.folder, line))
        self.late, self.lost, self.joined = [], {}, []

    async def _deploy(self, command: Deploy) -> None:
        async def to(one: Member) -> None:
            await one.training.carry(command)

        await self.every(to)

    async def _each(self, command: common.Each) -> dict[str, object]:
        """What the devices' steps came to, of those that were in time."""
        for one in self.admit():
            try:
                await one.training.begin(command.iteration)
                if self.deployed is not None:
                    await one.training.carry(self.deployed)
            except (BusError, ValueError, OSError) as failed:
                await self._part(one, failed)
            else:
                self.joined.append(one.name)
        self._need_one()
        tasks = {name: asyncio.create_task(self._driven(one, command.steps)) for name, one in self.members.items()}
        try:
            late = await _in_time(tasks, lambda name: self.members[name].arrived, self.fleet.wait_s)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        found: dict[str, object] = {}
        for name, task in tasks.items():
            one = self.members[name]
            error = None if task.cancelled() else task.exception()
            if name in late:
                one.late += 1
                self.late.append(name)
                if one.late == LATE:
                    await self._part(one, DeviceError(f"device {name!r}: too late {LATE} times in a row (--wait)"))
            elif isinstance(error, BusError | ValueError | OSError):
                await self._part(one, error)
            elif error is not None:
                raise error
            else:
                one.late = 0
                found[name] = task.result()
        self._need_one()
        return found

    def _may_be_cut(self, tasks: dict[str, asyncio.Task[object]], task: asyncio.Task[object]) -> bool:
        return next(not self.members[name].arrived for name, one in tasks.items() if one is task)

    async def _driven(self, one: Member, make: Callable[[Plan], Steps[object]]) -> object:
        """What a device's steps end with."""
        structlog.contextvars.bind_contextvars(device=one.name)
        one.arrived = False
        steps = make(one.training.plan)
        reply: Reply = None
        while True:
            async with self.turn:
                following = await asyncio.to_thread(_advanced, steps, reply)
            if isinstance(following, _End):
                return following.value
            reply = await one.training.carry(following)
            one.arrived = isinstance(following, Batch)


@dataclass(frozen=True, slots=True)
class _End:
    """What a generator of commands ended with."""

    value: Any


def _advanced(steps: Generator[C, R, Any], reply: R) -> C | _End:
    """The next command, or the end."""
    try:
        return steps.send(reply)
    except StopIteration as end:
        return _End(end.value)


async def _in_time(tasks: dict[str, asyncio.Task[object]], is_here: Callable[[str], bool], wait_s: float) -> list[str]:
    """Wait for tasks by the rule of this module; the names of those that are too late, which are cancelled.

    Whose batch ``is_here`` is waited for: it is the server that takes its time.
    """
    loop = asyncio.get_running_loop()
    half = (len(tasks) + 1) // 2
    end: float | None = None
    pending = set(tasks.values())
    while pending and (end is None or loop.time() < end):
        left = None if end is None else end - loop.time()
        _, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        answered = sum(task.done() and task.exception() is None for task in tasks.values())
        if end is None and answered >= half:
            end = loop.time() + wait_s
    late = [name for name, task in tasks.items() if task in pending and not is_here(name)]
    for name in late:
        tasks[name].cancel()
    if pending:
        await asyncio.wait(pending)
    return late
