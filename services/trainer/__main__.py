"""``python -m services.trainer --run runs/ID``: does the job of a run's folder, or goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from services.bus import Bus, service
from services.trainer import job, training


def main(
    run: Annotated[Path, typer.Option(help="Folder with job.json and network.safetensors.", file_okay=False)],
    broker: service.Broker = service.DEFAULT_BROKER,
    path: Annotated[str, typer.Option(help="Engine path: auto, portable, vnni, cuda.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads of the backward pass; the same number gives the same bits.")] = 2,
    json_logs: service.JsonLogs = None,
) -> None:
    """Trainer: backward pass on what the device computed, SGD, int8 model back. Ends when the job is done.

    Writes checkpoints, progress.jsonl, result.json and retrained.safetensors into the run's folder; started again on
    the same folder it goes on from the last checkpoint and ends with the same model, bit for bit.
    """
    torch.set_num_threads(threads)
    try:
        device = job.read(run).device
    except (ValueError, OSError) as error:
        service.fail("trainer", error)

    async def serve(bus: Bus) -> None:
        await training.run(bus, run, path)

    service.run("trainer", broker, device, json_logs, serve)


if __name__ == "__main__":
    typer.run(main)
