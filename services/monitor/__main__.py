"""``python -m services.monitor``: a page that shows what goes on, and metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from services.bus import service
from services.monitor.core import folder
from services.monitor.core.watched import Watched
from services.passwords import PasswordFile


def main(
    broker: service.Broker = service.DEFAULT_BROKER,
    password_file: PasswordFile = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: for all who reach this host.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8100,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which browsers may ask for the page, beside localhost and addresses.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with an operator's token, who may then also command; nobody may without.")
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option(help="A run's folder that is shown too, with what it has done so far; several times.")
    ] = None,
    json_logs: service.JsonLogs = None,
    log_level: service.LogLevel = "info",
) -> None:
    """Page and Prometheus metrics of all devices on a broker. It only watches, unless there is an operator's token."""
    try:
        from services.monitor import watching, web
    except ModuleNotFoundError as error:
        service.fail("monitor", ValueError(f"{str(error.name).split('.')[0]} is not installed; pip install 'r2f[monitor]'"))
    try:
        token = "" if token_file is None else web.read_token(token_file)
        options = web.Options(host, port, tuple(allow_host or ()), token, broker)
        watched = Watched()
        for one in run or ():
            folder.load(watched, one)
        listening = web.listen(options)
    except (ValueError, OSError) as error:
        service.fail("monitor", error)
    print(web.address(listening), flush=True)

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watching.watch(broker, watched))
            tasks.create_task(web.serve(watched, options, listening))

    service.run_all("monitor", service.Common(broker, "all", json_logs, log_level), work())


if __name__ == "__main__":
    typer.run(main)
