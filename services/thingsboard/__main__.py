"""``python -m services.thingsboard --thingsboard mqtt://host:1883 --token-file token``: devices and runs in ThingsBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services import devices
from services.bus import service
from services.passwords import PasswordFile, no_password
from services.thingsboard.bridge import Bridge, Options
from services.thingsboard.commands import commanding
from services.thingsboard.gateway import address


def main(
    thingsboard: Annotated[
        str, typer.Option(envvar="R2F_THINGSBOARD", help="mqtt://host:1883, or mqtts:// for TLS; mqtt://TOKEN@host too.")
    ],
    token_file: Annotated[
        Path | None, typer.Option(help="File with the access token of ThingsBoard's gateway device.", dir_okay=False)
    ] = None,
    broker: service.Broker = service.DEFAULT_BROKER,
    password_file: PasswordFile = None,
    device: Annotated[str, typer.Option(envvar="R2F_DEVICE", help="Devices to tell of: names or patterns, with commas.")] = "*",
    commands: Annotated[
        str | None,
        typer.Option(
            envvar="R2F_COMMANDS",
            callback=no_password,
            help="The bus as an account of the role server: then ThingsBoard may command devices that no run has.",
        ),
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="Folder with the networks that it may deploy.", file_okay=False, exists=True)
    ] = None,
    json_logs: service.JsonLogs = None,
    log_level: service.LogLevel = "info",
) -> None:
    """Bridge to ThingsBoard: telemetry and attributes of every device of the bus, through one gateway session."""

    async def work() -> None:
        if models is not None and commands is None:
            raise ValueError("--models: networks to deploy are of use with --commands alone")
        bridge = Bridge(Options(broker, address(thingsboard, token_file), devices.checked(device)))
        if commands is not None:
            bridge.commands = commanding(bridge, commands, models)
        await bridge.serve()

    service.run_all("thingsboard", service.Common(broker, device, json_logs, log_level), work())


if __name__ == "__main__":
    typer.run(main)
