"""``python -m services.edge_agent --data FILE``: the device."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from accelsim import accelerators, datasets, faults
from accelsim.engine import keep_idle
from accelsim.faults import chip
from accelsim.timing import Array
from accelsim.timing.scalesim import read_config
from services import memory
from services.bus import Bus, service
from services.edge_agent.agent import Agent, Device
from services.passwords import PasswordFile


def main(
    data: Annotated[str, typer.Option(help="'digits', 'shapes', 'crops2x', latents:Z, an .npz, or a folder of class folders.")],
    broker: service.Broker = service.DEFAULT_BROKER,
    password_file: PasswordFile = None,
    device: service.Device = service.DEFAULT_DEVICE,
    image_size: Annotated[str | None, typer.Option(help="HxWxC that a folder of images is scaled to, e.g. 224x224x3.")] = None,
    mean: Annotated[str | None, typer.Option(help="Of each channel, of pixels in 0..1, e.g. 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="As --mean.")] = None,
    classes: Annotated[str | None, typer.Option(help="File with the network's class names in its order, one a line.")] = None,
    accelerator: Annotated[
        str, typer.Option(help="What runs the MAC layers: simulated, onnxruntime, or package.module:function.")
    ] = "simulated",
    fault_model: Annotated[
        str, typer.Option(help="Which bits flip, at the rates of the run: soft, burst, or package.module:function.")
    ] = "soft",
    max_ber: Annotated[
        float, typer.Option(min=0, max=1, envvar="R2F_MAX_BER", help="A run that asks for more errors at any site is refused.")
    ] = 1.0,
    array: Annotated[Path | None, typer.Option(help="Array that is timed: a SCALE-Sim .cfg; 32x32 without.")] = None,
    fault_map: Annotated[
        Path | None, typer.Option(envvar="R2F_FAULT_MAP", help="Chip file (docs/chips.md) of the array's permanent faults.")
    ] = None,
    random_faults: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            envvar="R2F_RANDOM_FAULTS",
            help="Share of the array's elements that are faulty, in place of a map.",
        ),
    ] = None,
    chip_seed: Annotated[int, typer.Option(min=0, envvar="R2F_CHIP_SEED", help="Which of the random chips.")] = 0,
    path: Annotated[str, typer.Option(help="Engine path: auto, portable, vnni, cuda.")] = "auto",
    arena_mb: service.ArenaMb = service.ARENA_MB,
    json_logs: service.JsonLogs = None,
    log_level: service.LogLevel = "info",
    patience: service.Patience = service.PATIENCE_S,
    signing_key: service.SigningKey = None,
    audit_log: service.AuditLog = None,
) -> None:
    """Edge agent: runs the int8 forward pass on an accelerator that makes errors, as the server commands.

    Takes down/mode, down/forward, edge/model; gives edge/inputs and edge/replicas, or up/outputs in inference mode.
    """

    @cache  # devices that share a process photograph the same data
    def made() -> Device:
        spec = datasets.spec_of(data, image_size=image_size, mean=mean, std=std, classes=classes)
        runs = f"simulated:{path}" if accelerator == "simulated" else accelerator
        timed = Array() if array is None else read_config(array)
        factory = accelerators.build(runs, faults.build(fault_model), chip.of(timed, fault_map, random_faults, chip_seed))
        return Device(datasets.open(spec), factory, timed, path, max_ber)

    memory.give_memory_back()
    keep_idle(arena_mb << 18)  # a quarter of what may be under way

    alone = asyncio.Lock()

    async def serve(bus: Bus) -> None:
        async with alone:
            own = await asyncio.to_thread(made)  # the broker must hear of us meanwhile
        await Agent(bus, own).serve()

    service.run(
        "agent",
        service.Common(broker, device, json_logs, log_level, patience, signing_key, audit_log),
        serve,
        arena_mb=arena_mb,
        readers=("voter", "codec-device"),
    )


if __name__ == "__main__":
    typer.run(main)
