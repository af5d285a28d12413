"""The page of a run: beside it while it goes on (``--watch``), and of its folder afterwards (``r2f view``)."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import webbrowser
from importlib.util import find_spec
from pathlib import Path

from broker.launch import free_port
from r2f.display import Display
from r2f.pipeline import Pipeline, PipelineError, Program
from r2f.settings import Settings
from services.monitor.core import folder as folders
from services.monitor.core.watched import Watched

PAGE = {"starlette": "starlette", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
UP_S = 30.0


def check(settings: Settings) -> None:
    """Raises ValueError where a run is to be shown or written for TensorBoard, and what that takes is not installed."""
    if settings.watch:
        need(PAGE, "--watch", "monitor")
    if settings.tensorboard:
        need({"tensorboardX": "tensorboardX"}, "--tensorboard", "tensorboard")


def need(packages: dict[str, str], option: str, extra: str) -> None:
    """Raises ValueError naming what is not installed of packages by module."""
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        raise ValueError(
            f"{option}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; pip install 'r2f[{extra}]'"
        )


async def page(running: Pipeline, folder: Path, broker: str, port: int, say: Display) -> None:
    """Keep a monitor running, say where its page is, and show it where the display wants that. Where it fails that is said,
    and the run goes on."""
    if not _is_free(port):
        port = free_port()
    # What a resumed run did before is in its folder. Names of devices may be as many as a run has.
    shown = ("--run", str(folder)) if _is_readable(folder) else ()
    program = Program("monitor", "services.monitor", ("--port", str(port), *shown), {"R2F_BROKER": broker})
    keeping = asyncio.create_task(running.watch(program, needed=True))
    try:
        if await _is_up(port, keeping):
            at = f"http://127.0.0.1:{port}/"
            say.note(f"watch it on {at}")
            if say.browser:
                await asyncio.to_thread(show, at)
        await keeping
    except PipelineError as error:
        say.note(f"the page is gone, the run goes on: {error}")
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def _is_readable(folder: Path) -> bool:
    try:
        return bool(folders.read(folder))
    except ValueError:
        return False


def _is_free(port: int) -> bool:
    if port == 0:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def _is_up(port: int, keeping: asyncio.Task[None]) -> bool:
    """Whether the page answers, in time and before its process gave up."""
    end = asyncio.get_running_loop().time() + UP_S
    while asyncio.get_running_loop().time() < end and not keeping.done():
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return True
    return False


def show(at: str) -> bool:
    """Opens an address in a browser; whether there is one. Without a display one in the terminal would take that over."""
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in displays):
        return False
    return webbrowser.open(at)


def view(run: list[Path], broker: str | None, host: str, port: int, *, browser: bool) -> None:
    """Serve the page of runs' folders until Ctrl-C; with ``broker`` what goes on there too. Raises ValueError naming what is
    missing."""
    need(PAGE, "r2f view", "monitor")
    from services.monitor import watching, web

    watched = Watched()
    for one in run:
        folders.load(watched, one)
    options = web.Options(host, port, broker=broker or "")
    listening = web.listen(options)
    at = web.address(listening)
    print(f"{at}  (Ctrl-C ends it)", flush=True)
    if browser:
        show(at)

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            if broker is not None:
                tasks.create_task(watching.watch(broker, watched))
            tasks.create_task(web.serve(watched, options, listening))

    asyncio.run(work())
