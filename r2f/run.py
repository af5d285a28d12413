"""One retraining run: the pipeline on a prepared folder, and the report on what came of it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from accelsim import datasets
from accelsim.named import FOLDER
from broker.launch import free_port
from broker.link import profile
from r2f import folders, pipeline, plots, prepare, report
from r2f import settings as settings_file
from r2f.display import Display
from r2f.errors import first
from r2f.memory import Shares
from r2f.pipeline import PipelineError, Program
from r2f.settings import Settings
from services.bus import Bus, BusError
from services.bus.messages import Progress, Timing
from services.trainer import waiting

LISTEN_S = 15.0
"""How long the trainer waits for the display to hear its events."""


def start(settings: Settings, folder: Path, say: Display) -> report.Report:
    """A new run in an empty folder, from data and weights to the report.

    Raises ValueError for what does not fit, PipelineError and BusError for what fails.
    """
    broker = settings.broker
    if broker is not None:
        prepare.reach(broker)
    prepare.prepare(settings_file.resolved(settings), folder, say)
    return go_on(folder, say, broker)


def go_on(folder: Path, say: Display, broker: str | None = None) -> report.Report:
    """A prepared run from wherever it is to its report. Raises what ``start`` does.

    ``broker`` is the address of the run's broker as it is now, where the run starts none of its own: the settings in the
    folder know no password.
    """
    settings = read_settings(folder)
    if broker is not None and settings.broker is not None:
        settings = msgspec.structs.replace(settings, broker=broker)
    if settings.broker is not None:
        prepare.reach(settings.broker)
    if waiting.outcome(folder) == "":
        say.note(f"{folder}: this run is done; nothing is left to do but to report it again")
    with folders.locked(folder):
        try:
            asyncio.run(_until_sigterm(execute(settings, folder, say)))
        except BaseExceptionGroup as group:
            raise first(group) from group
    return finish(settings, folder)


async def _until_sigterm(work: Coroutine[Any, Any, None]) -> None:
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
        await work
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

    Raises PipelineError with the last word of whatever failed, BusError where the broker is out of reach.
    """
    async with AsyncExitStack() as stack:
        programs, device_broker, server_broker = broker_programs(settings)
        if settings.launch:
            programs += service_programs(settings, prepare.read(folder).memory, device_broker, server_broker)
        if not settings.trainer:
            (folder / waiting.FAILED).unlink(missing_ok=True)
        (folder / folders.BROKER).write_text(settings_file.without_password(server_broker) + "\n", encoding="utf-8")
        trainer = Program("trainer", "services.trainer", ("--run", str(folder)), {"R2F_BROKER": server_broker})
        running = await stack.enter_async_context(pipeline.running(programs, folder / "logs", say.restarted))
        say.started(running)
        listening = asyncio.Event()
        watcher = asyncio.create_task(_watch(server_broker, settings.device, say, listening))
        hearing = asyncio.create_task(listening.wait())
        tasks: list[asyncio.Task[Any]] = [watcher, hearing]
        try:
            # The trainer starts when its first events are heard; who cannot listen is no reason not to.
            await asyncio.wait(tasks, timeout=LISTEN_S, return_when=asyncio.FIRST_COMPLETED)
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
    """Until the trainer that waits for runs has done this one. Raises PipelineError with its reason if it gave up."""
    while (reason := waiting.outcome(folder)) is None:  # noqa: ASYNC110  (the other end is a file)
        await asyncio.sleep(waiting.POLL_S)
    if reason:
        raise PipelineError(f"trainer: {reason}")


def finish(settings: Settings, folder: Path) -> report.Report:
    """``report.json`` and the plots of a run that is done."""
    prepared = prepare.read(folder)
    link = None if settings.link is None else profile(settings.link)
    found = report.collect(folder, network=settings.network, link=link, prepared=prepared)
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


def service_programs(settings: Settings, memory: Shares, device_broker: str, server_broker: str) -> list[Program]:
    named = ("--device", settings.device)
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
    # On a real link, chunks are no longer than two seconds of its rate, and senders wait for credit as long as it takes.
    if settings.live and settings.link is not None:
        link = profile(settings.link)
        up["R2F_LINK_BITS_PER_S"], down["R2F_LINK_BITS_PER_S"] = str(link.up), str(link.down)
    modules = {} if settings.modules is None else {FOLDER: settings.modules}
    return [
        Program("agent", "services.edge_agent", (*named, *agent), up | modules),
        Program("voter", "services.voter", (*named, "--arena-mb", str(memory.voter)), on_device),
        Program("codec-device", "services.codec", ("--side", "device", *named, *codec), up),
        Program("codec-server", "services.codec", ("--side", "server", *named), down),
    ]


async def _watch(broker: str, device: str, say: Display, listening: asyncio.Event) -> None:
    """Feed the live display from the events. A display that lost its broker is no reason to stop."""
    while True:
        try:
            async with Bus(broker, service="watch", device=device, passive=True, give_up_s=3600.0) as bus:
                await bus.subscribe("event/#")
                listening.set()
                async for _, message in bus:
                    if isinstance(message, Progress):
                        say.progress(message)
                    elif isinstance(message, Timing):
                        say.timing(message)
        except BusError as error:
            say.note(str(error))
            await asyncio.sleep(1.0)
