"""One retraining run: the pipeline on a prepared folder, and the report on what came of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from accelsim import datasets
from accelsim.named import FOLDER
from broker.launch import free_port
from broker.link import profile
from r2f import folders, pipeline, plots, prepare, report, sheet, tensorboard, watch
from r2f import settings as settings_file
from r2f.devices import choosing, dividing, watching
from r2f.devices import report as of_devices
from r2f.devices.report import FleetReport
from r2f.display import Display
from r2f.errors import first
from r2f.memory import Shares
from r2f.pipeline import PipelineError, Program
from r2f.settings import Settings
from services.bus import Bus, BusError, topics
from services.bus.audit import VARIABLE as AUDIT_LOG
from services.bus.messages import Dropped, Phase, Progress, Timing
from services.bus.service import Stopped
from services.trainer import waiting
from services.trainer.core import fleet as fleets
from services.trainer.core import result
from services.trainer.core.fleet import Fleet

T = TypeVar("T")
_ALONE = {"OMP_NUM_THREADS": "1"}
"""Of processes that are as many as the cores: more threads would only wait for one another."""
AUDIT = "audit.jsonl"
"""In the folder of logs."""
SAID = 8
"""Services of which it is said, once each, that they dropped something; their logs have the rest."""
LISTEN_S = 15.0
"""How long the trainer waits for the display to hear its events."""


def start(settings: Settings, folder: Path, say: Display) -> report.Report | FleetReport:
    """A new run in an empty folder, from data and weights to the report.

    Raises ValueError for what does not fit, PipelineError and BusError for what fails, Stopped where somebody had it stopped.
    """
    broker = settings.broker
    watch.check(settings)
    if broker is not None:
        prepare.reach(broker)
    fleet = choosing.fleet_of(settings)
    prepare.prepare(settings_file.resolved(settings), folder, say, fleet)
    return go_on(folder, say, broker)


def go_on(folder: Path, say: Display, broker: str | None = None) -> report.Report | FleetReport:
    """A prepared run from wherever it is to its report. Raises what ``start`` does.

    ``broker`` is the address of the run's broker as it is now, where the run starts none of its own: the settings in the
    folder know no password.
    """
    settings = read_settings(folder)
    if broker is not None and settings.broker is not None:
        settings = msgspec.structs.replace(settings, broker=broker)
    watch.check(settings)
    if settings.broker is not None:
        prepare.reach(settings.broker)
    if waiting.outcome(folder) == "":
        say.note(f"{folder}: this run is done; nothing is left to do but to report it again")
    fleet = fleets.read(folder)
    with ExitStack() as stack:
        stack.enter_context(folders.locked(folder))
        if fleet is not None and fleet.sharing == "own":
            for device in fleet.devices:
                stack.enter_context(folders.locked(folder / device))
            dividing.again(folder, fleet)
        try:
            asyncio.run(until_sigterm(execute(settings, folder, say)))
        except BaseExceptionGroup as group:
            raise first(group) from group
    return finish(settings, folder)


async def until_sigterm(work: Coroutine[Any, Any, T]) -> T:
    """Does the work; at SIGTERM stops it in order, as Ctrl-C does, and raises KeyboardInterrupt. Elsewhere than in the main
    thread nobody hears signals."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    hears = threading.current_thread() is threading.main_thread()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        if task is not None:
            task.cancel()

    before = signal.getsignal(signal.SIGTERM)
    if hears:
        loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        return await work
    except asyncio.CancelledError:
        if stopped:
            raise KeyboardInterrupt from None
        raise
    finally:
        if hears:
            loop.remove_signal_handler(signal.SIGTERM)
            if before is not None:  # None: it is not Python's
                signal.signal(signal.SIGTERM, before)


def read_settings(folder: Path) -> Settings:
    """The settings of a run's folder. Raises ValueError that names the file where it is none."""
    path = folder / settings_file.FILE
    if not path.exists():
        old = ", but an older run.json: start it anew with this version" if (folder / "run.json").exists() else ""
        raise ValueError(f"{folder}: no run is there: {settings_file.FILE} is missing{old}")
    return settings_file.read(path)


async def execute(settings: Settings, folder: Path, say: Display) -> None:
    """Run the pipeline on a prepared folder until the trainer is done. Everything started here is stopped again.

    Raises PipelineError with the last word of whatever failed, BusError where the broker is out of reach, Stopped where
    somebody had the run stopped (``r2f stop``).
    """
    async with AsyncExitStack() as stack:
        programs, device_broker, server_broker = broker_programs(settings)
        fleet = fleets.read(folder)
        memory = prepare.read(folder).memory
        if fleet is not None:
            programs += _fleet_services(settings, fleet, memory, device_broker, server_broker)
        elif settings.launch:
            programs += service_programs(settings, memory, device_broker, server_broker)
        if not settings.trainer:
            (folder / waiting.FAILED).unlink(missing_ok=True)
            (folder / result.STOPPED).unlink(missing_ok=True)
        (folder / folders.BROKER).write_text(settings_file.without_password(server_broker) + "\n", encoding="utf-8")
        ranks = ("--ranks", str(settings.ranks), "--meet", f"127.0.0.1:{free_port()}") if settings.ranks > 1 else ()
        beside = {"R2F_BROKER": server_broker, **link_rates(settings)[1]}
        trainer = Program("trainer", "services.trainer", ("--run", str(folder), *ranks), beside)
        programs += [
            Program(f"trainer-rank-{rank}", "services.trainer.ranks", ("--rank", str(rank), *ranks))
            for rank in range(1, settings.ranks)
        ]
        audit = {AUDIT_LOG: os.environ.get(AUDIT_LOG) or str((folder / "logs" / AUDIT).resolve())}
        trainer, *programs = (replace(one, environment=audit | one.environment) for one in (trainer, *programs))
        running = await stack.enter_async_context(pipeline.running(programs, folder / "logs", say.restarted))
        say.started(running)
        showing: list[asyncio.Task[Any]] = []
        if settings.watch:
            showing.append(asyncio.create_task(watch.page(running, folder, server_broker, settings.watch_port, say)))
        if settings.tensorboard:
            showing.append(asyncio.create_task(tensorboard.follow(folder, say.note)))
        listening = asyncio.Event()
        devices = fleet.devices if fleet else (settings.device,)
        say.devices = len(devices)
        watcher = asyncio.create_task(_watch(server_broker, devices, say, listening, running))
        hearing = asyncio.create_task(listening.wait())
        tasks: list[asyncio.Task[Any]] = [watcher, hearing, *showing]
        try:
            # The trainer starts when its first events are heard; who cannot listen is no reason not to.
            await asyncio.wait([watcher, hearing], timeout=LISTEN_S, return_when=asyncio.FIRST_COMPLETED)
            working = asyncio.create_task(running.watch(trainer) if settings.trainer else _elsewhere(folder))
            tasks.append(working)
            # The watcher never ends but by an error of who watches: a callback's, which ends the run.
            await asyncio.wait([working, watcher], return_when=asyncio.FIRST_COMPLETED)
            await (working if working.done() else watcher)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _elsewhere(folder: Path) -> None:
    """Until the trainer that waits for runs has done this one. Raises PipelineError with its reason if it gave up, Stopped
    with that of whoever had it stopped."""
    while (reason := waiting.outcome(folder)) is None:
        if stopped := result.stopped(folder):
            raise Stopped(stopped)
        await asyncio.sleep(waiting.POLL_S)
    if reason:
        raise PipelineError(f"trainer: {reason}")


def finish(settings: Settings, folder: Path) -> report.Report | FleetReport:
    """``report.json`` of a run that is done, of one device its plots and sample images."""
    prepared, fleet = prepare.read(folder), fleets.read(folder)
    link = None if settings.link is None else profile(settings.link)
    if fleet is not None:
        of_all = of_devices.collect(folder, fleet, network=settings.network, link=link, prepared=prepared)
        of_devices.write(folder, of_all)
        return of_all
    shown = sheet.draw(folder, settings)
    found = report.collect(folder, network=settings.network, link=link, prepared=prepared, sheet=shown)
    report.write(folder, found)
    plots.draw(folder, found)
    return found


def broker_programs(settings: Settings) -> tuple[list[Program], str, str]:
    """The brokers to start, and the addresses of the device's and the server's. Live, a shaping proxy is between them."""
    if settings.broker is not None:
        return [], settings.broker, settings.broker
    server = free_port()
    at = f"mqtt://127.0.0.1:{server}"
    kind = ("--embedded",) if settings.embedded else ()
    brokers = [Program("broker", "broker", ("--port", str(server), *kind))]
    if not settings.live or settings.link is None:
        return brokers, at, at
    device, proxy = free_port(), free_port()
    ends = ("--listen", f"127.0.0.1:{proxy}", "--connect", f"127.0.0.1:{server}")
    brokers.append(Program("link", "broker.link", ("--profile", settings.link, *ends)))
    bridged = ("--port", str(device), "--bridge-to", f"127.0.0.1:{proxy}")
    brokers.append(Program("device-broker", "broker", bridged))
    return brokers, f"mqtt://127.0.0.1:{device}", at


def _fleet_services(
    settings: Settings, fleet: Fleet, memory: Shares, device_broker: str, server_broker: str
) -> list[Program]:  # fmt: skip
    """The processes that several devices share; a device stays in one."""
    found: list[Program] = []
    if settings.launch:
        for number, hosted in enumerate(choosing.hosts(settings, fleet)):
            *of_device, _ = service_programs(settings, memory, device_broker, server_broker, ",".join(hosted), f"-{number}")
            found += of_device
    count = choosing.codecs(settings, fleet)
    for number in range(count):
        named = ",".join(fleet.devices[number::count]) if settings.launch and not fleet.pattern else settings.device
        part = () if settings.launch else ("--part", f"{number + 1}/{count}")
        codec = ("--side", "server", "--device", named, *part)
        found.append(Program(f"codec-server-{number}", "services.codec", codec, {"R2F_BROKER": server_broker} | _ALONE))
    return found


def service_programs(
    settings: Settings, memory: Shares, device_broker: str, server_broker: str, devices: str | None = None, suffix: str = ""
) -> list[Program]:
    """The services of a device, or of ``devices`` that share a process of each: its own three, and the codec's server side."""
    named = ("--device", devices or settings.device)
    agent = [*datasets.arguments(settings.data), f"--accelerator={settings.accelerator}"]
    agent += [f"--fault-model={settings.fault_model}", "--arena-mb", str(memory.agent)]
    codec = ("--arena-mb", str(memory.codec), "--keep-mb", str(memory.keep))
    if settings.array is not None:
        agent += ["--array", settings.array]
    if settings.fault_map is not None:
        agent += ["--fault-map", settings.fault_map]
    if settings.random_faults is not None:
        agent += ["--random-faults", repr(settings.random_faults), "--chip-seed", str(settings.chip_seed)]
    # Addresses may hold passwords, which everybody on the host would see among the arguments.
    on_device, up, down = ({"R2F_BROKER": broker} for broker in (device_broker, device_broker, server_broker))
    of_device, of_server = link_rates(settings)
    up, down = up | of_device, down | of_server
    modules = {} if settings.modules is None else {FOLDER: settings.modules}
    threads = _ALONE if suffix else {}
    # A program of somebody else need not know how to read shared memory.
    aside = threads | ({"R2F_SHM_DIR": ""} if settings.external else {})
    programs = [
        Program(f"agent{suffix}", "services.edge_agent", (*named, *agent), up | modules | aside),
        Program(f"voter{suffix}", "services.voter", (*named, "--arena-mb", str(memory.voter)), on_device | aside),
        Program(f"codec-device{suffix}", "services.codec", ("--side", "device", *named, *codec), up | aside),
        Program(f"codec-server{suffix}", "services.codec", ("--side", "server", *named), down | threads),
    ]
    return [program for program in programs if program.name.removesuffix(suffix) not in settings.external]


def link_rates(settings: Settings) -> tuple[dict[str, str], dict[str, str]]:
    """Environment of what is on the device and of what is on the server: on a real link, chunks are no longer than two seconds
    of its rate, and who waits for what crosses it waits as long as it takes."""
    if not settings.live or settings.link is None:
        return {}, {}
    link = profile(settings.link)
    return {"R2F_LINK_BITS_PER_S": str(link.up)}, {"R2F_LINK_BITS_PER_S": str(link.down)}


async def _watch(
    broker: str, devices: Sequence[str], say: Display, listening: asyncio.Event, running: pipeline.Pipeline
) -> None:  # fmt: skip
    """Feed the live display from the events, and say where the run gets on. A display that lost its broker does not stop it."""
    merged = watching.Merged(len(devices))
    known: set[tuple[str, Phase, bool, int]] = set()
    said: set[tuple[str, str]] = set()
    while True:
        try:
            async with Bus(broker, service="watch", device=devices[0], passive=True, give_up_s=3600.0) as bus:
                # Of several devices the stages would be more messages than all else that is watched for.
                wanted = ("event/#",) if len(devices) == 1 else ("event/progress", "event/dropped")
                await bus.subscribe(*(bus.topic(name, one) for one in devices for name in wanted))
                listening.set()
                async for topic, message in bus:
                    if isinstance(message, Progress):
                        step = (topic, message.phase, message.faults, message.step)
                        if step not in known:  # what is done again after a restart is no progress
                            known.add(step)
                            running.got_on()
                        say.progress(message if len(devices) == 1 else merged.of(topics.parse(topic).device, message))
                    elif isinstance(message, Timing):
                        say.timing(message)
                    elif isinstance(message, Dropped):
                        of = (message.service, topics.parse(topic).device)
                        if of not in said and len(said) < SAID:
                            said.add(of)
                            say.note(f"{of[0]} of {of[1]} dropped a message: {message.reason}")
        except BusError as error:
            say.note(str(error))
            await asyncio.sleep(1.0)
