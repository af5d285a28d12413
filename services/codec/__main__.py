"""``python -m services.codec --side device|server``: one end of the link."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from services import memory
from services.bus import Bus, service
from services.passwords import PasswordFile

KEEP_MB = 128
MOST_PROCESSES = 1024


def main(
    side: Annotated[Literal["device", "server"], typer.Option(help="Which end of the link this is.")],
    broker: service.Broker = service.DEFAULT_BROKER,
    password_file: PasswordFile = None,
    device: service.Device = service.DEFAULT_DEVICE,
    path: Annotated[Literal["auto", "portable", "vnni", "cuda"], typer.Option(help="Engine path.")] = "auto",
    arena_mb: service.ArenaMb = 2 * service.ARENA_MB,
    keep_mb: Annotated[
        int,
        typer.Option(min=0, help="Device: MiB of an iteration kept for repairs; beyond that the pass waits."),
    ] = KEEP_MB,
    part: Annotated[
        str, typer.Option(help="K/N: of --device, which may be a pattern here, the share of the K-th of N processes.")
    ] = "1/1",
    json_logs: service.JsonLogs = None,
    log_level: service.LogLevel = "info",
    patience: service.Patience = service.PATIENCE_S,
    signing_key: service.SigningKey = None,
    audit_log: service.AuditLog = None,
) -> None:
    """Codec: compresses layer outputs and images on the device, rebuilds them on the server; and the model the other way.

    The device's end: edge/voted, edge/inputs -> up/layers, up/inputs; down/model -> edge/model.
    The server's end: up/layers, up/inputs -> server/activations, server/inputs; server/model -> down/model.
    """

    # Imported before the bus is opened: it takes seconds, and who announces itself is to hear what is said to it.
    if side == "device":
        memory.give_memory_back()
        from services.codec.device_side import DeviceCodec
    else:
        memory.keep_memory()
        from services.codec.server_side import ServerCodec

    async def serve(bus: Bus) -> None:
        await (DeviceCodec(bus, path, keep_mb << 20) if side == "device" else ServerCodec(bus, path)).serve()

    reader = "agent" if side == "device" else "trainer"
    service.run(
        f"codec-{side}",
        service.Common(broker, device, json_logs, log_level, patience, signing_key, audit_log),
        serve,
        arena_mb=arena_mb,
        readers=(reader,),
        part=_part(part),
    )


def _part(text: str) -> tuple[int, int]:
    """``K/N`` as (number from 0, processes)."""
    number, slash, processes = text.partition("/")
    if not (slash and number.isdecimal() and processes.isdecimal() and 1 <= int(number) <= int(processes) <= MOST_PROCESSES):
        raise typer.BadParameter(f"{text!r}: K/N with 1 <= K <= N <= {MOST_PROCESSES}, such as 2/4", param_hint="--part")
    return int(number) - 1, int(processes)


if __name__ == "__main__":
    typer.run(main)
