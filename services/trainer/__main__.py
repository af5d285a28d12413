"""``python -m services.trainer --run runs/ID``: does the job of a run's folder, or goes on with it.

``--next runs`` waits for a run below that folder instead, for a trainer in a container of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from services import memory
from services.bus import Bus, service
from services.trainer import common as shared
from services.trainer import fleet as fleets
from services.trainer import training, waiting
from services.trainer.core import fleet, job


def main(
    run: Annotated[Path | None, typer.Option(help="Folder with job.json and network.safetensors.", file_okay=False)] = None,
    next: Annotated[
        Path | None, typer.Option(help="Wait for a run below this folder that is not done, and do it.", file_okay=False)
    ] = None,
    broker: service.Broker = service.DEFAULT_BROKER,
    path: Annotated[str, typer.Option(help="Engine path: auto, portable, vnni, cuda.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the backward pass; the same number gives the same bits.")] = 2,
    json_logs: service.JsonLogs = None,
    log_level: service.LogLevel = "info",
    patience: service.Patience = service.PATIENCE_S,
) -> None:
    """Trainer: backward pass on what the device computed, SGD, int8 model back. Ends when the job is done.

    Writes checkpoints, progress.jsonl, result.json and retrained.safetensors into the run's folder; started again on
    the same folder it goes on from the last checkpoint and ends with the same model, bit for bit.
    """
    memory.keep_memory()
    torch.set_num_threads(threads)
    if next is not None and run is None:
        folder = waiting.next_run(next)
    elif run is not None and next is None:
        folder = run
    else:
        raise typer.BadParameter("give --run or --next, and not both")
    try:
        several = fleet.read(folder)
        device = job.read(folder).device
    except (ValueError, OSError) as error:
        if next is not None:
            waiting.give_up(folder, error)
        service.fail("trainer", error)

    async def serve(bus: Bus) -> None:
        try:
            await training.run(bus, folder, path)
        except Exception as error:  # whatever it is, whoever waits for the run must hear of it
            if next is not None:
                waiting.give_up(folder, error)
            raise

    common = service.Common(broker, device, json_logs, log_level, patience)
    if several is None:
        service.run("trainer", common, serve, readers=("codec-server",))
    else:
        service.run_all("trainer", common, _of_several(several, folder, common, path, next is not None))


async def _of_several(several: fleet.Fleet, folder: Path, options: service.Common, path: str, awaited: bool) -> None:
    """A run of several devices; ``awaited``: somebody elsewhere waits for it, and hears of a failure by the folder."""
    try:
        if several.sharing == "own":
            await fleets.own(several, folder, options, path)
        else:
            await shared.run(several, folder, options, path)
    except Exception as error:
        if awaited:
            waiting.give_up(folder, error)
        raise


if __name__ == "__main__":
    typer.run(main)
