"""``python -m services.edge_agent --data FILE``: the device."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from accelsim.accelerators import Accelerator, Simulated
from accelsim.datasets import load
from accelsim.engine import keep_idle
from accelsim.faults import Rates
from accelsim.timing import Array
from accelsim.timing.scalesim import read_config
from services.bus import Bus, service
from services.edge_agent.agent import Agent, Device


class Kind(StrEnum):
    simulated = "simulated"
    onnxruntime = "onnxruntime"


def main(
    data: Annotated[str, typer.Option(help="'digits', an .npz with train_images..., or a folder of class folders.")],
    broker: service.Broker = service.DEFAULT_BROKER,
    device: service.Device = service.DEFAULT_DEVICE,
    image_size: Annotated[str | None, typer.Option(help="HxWxC that a folder of images is scaled to, e.g. 224x224x3.")] = None,
    accelerator: Annotated[Kind, typer.Option(help="What runs the MAC layers.")] = Kind.simulated,
    array: Annotated[Path | None, typer.Option(help="Array that is timed: a SCALE-Sim .cfg [default: 32x32]")] = None,
    path: Annotated[str, typer.Option(help="Engine path: auto, portable, vnni, cuda.")] = "auto",
    arena_mb: service.ArenaMb = service.ARENA_MB,
    json_logs: service.JsonLogs = None,
) -> None:
    """Edge agent: runs the int8 forward pass on an accelerator that makes errors, as the server commands.

    Takes down/mode, down/forward, edge/model; gives edge/inputs and edge/replicas, or up/outputs in inference mode.
    """

    def new_accelerator(rates: Rates, seed: int, device: str) -> Accelerator:
        if accelerator is Kind.onnxruntime:
            from accelsim.accelerators.onnxruntime import OnnxAccelerator

            return OnnxAccelerator(rates, seed, device)
        return Simulated(rates, seed, device, path)

    service.give_memory_back()
    keep_idle(arena_mb << 18)  # a quarter of what may be under way

    async def serve(bus: Bus) -> None:
        timed = Array() if array is None else read_config(array)
        await Agent(bus, Device(load(data, shape=_shape(image_size)), new_accelerator, timed, path)).serve()

    service.run("agent", broker, device, json_logs, serve, arena_mb=arena_mb, readers=("voter", "codec-device"))


def _shape(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--image-size {text!r}: expected HxWxC, e.g. 224x224x3")
    return int(parts[0]), int(parts[1]), int(parts[2])


if __name__ == "__main__":
    typer.run(main)
