"""``python -m services.trainer --run runs/ID``: does the job of a run's folder, or goes on with it.

``--next runs`` waits for a run below that folder instead, for a trainer in a container of its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer

from services import memory
from services.bus import Bus, service
from services.passwords import PasswordFile
from services.trainer import common as shared
from services.trainer import fleet as fleets
from services.trainer import ranks as distributed
from services.trainer import training, waiting
from services.trainer.core import fleet, job, result
from services.trainer.core.fleet import Fleet
from services.trainer.core.parts import Replaying


def main(
    run: Annotated[Path | None, typer.Option(help="Folder with job.json and network.safetensors.", file_okay=False)] = None,
    next: Annotated[
        Path | None, typer.Option(help="Wait for a run below this folder that is not done, and do it.", file_okay=False)
    ] = None,
    broker: service.Broker = service.DEFAULT_BROKER,
    password_file: PasswordFile = None,
    path: Annotated[str, typer.Option(help="Engine path: auto, portable, vnni, cuda.")] = "auto",
    threads: distributed.Threads = 2,
    ranks: distributed.RanksOption = 1,
    meet: distributed.Meet = "127.0.0.1:29500",
    json_logs: service.JsonLogs = None,
    log_level: service.LogLevel = "info",
    patience: service.Patience = service.PATIENCE_S,
    signing_key: service.SigningKey = None,
    audit_log: service.AuditLog = None,
) -> None:
    """Trainer: backward pass on what the device computed, SGD, int8 model back. Ends when the job is done.

    Writes checkpoints, progress.jsonl, result.json and retrained.safetensors into the run's folder; started again on
    the same folder it goes on from the last checkpoint and ends with the same model, bit for bit. A run that somebody had
    stopped (server/stop) ends with exit code 3 and the reason in stopped.txt.
    """
    memory.keep_memory()
    torch.set_num_threads(threads)
    if next is not None and run is None:
        folder = waiting.next_run(next)
    elif run is not None and next is None:
        folder = run
    else:
        raise typer.BadParameter("give --run or --next, and not both")

    mine = ExitStack()
    try:
        mine.enter_context(waiting.alone(folder))  # until this process ends
    except (ValueError, OSError) as error:  # the run is another's, so it is not given up
        service.fail("trainer", error)

    def fail(error: BaseException) -> None:
        if next is not None:  # whatever it is, whoever waits for the run must hear of it
            waiting.give_up(folder, error)

    try:
        several, todo = fleet.read(folder), job.read(folder)
    except (ValueError, OSError) as error:
        fail(error)
        service.fail("trainer", error)
    (folder / result.STOPPED).unlink(missing_ok=True)
    common = service.Common(broker, todo.device, json_logs, log_level, patience, signing_key, audit_log)

    async def serve(bus: Bus, replaying: Replaying | None) -> None:
        try:
            await training.run(bus, folder, path, replaying=replaying)
        except service.Stopped as stopped:
            waiting.stop(folder, str(stopped))
            raise
        except Exception as error:
            fail(error)
            raise

    async def serve_all(of: Fleet, replaying: Replaying | None) -> None:
        try:
            await (fleets.own if of.sharing == "own" else shared.run)(of, folder, common, path, replaying)
        except service.Stopped as stopped:
            waiting.stop(folder, str(stopped))
            raise
        except Exception as error:
            fail(error)
            raise

    try:
        with distributed.sharing(ranks, todo.recipe.chunks, meet) as replaying:
            if several is None:
                service.run("trainer", common, lambda bus: serve(bus, replaying), readers=("codec-server",))
            else:
                service.run_all("trainer", common, serve_all(several, replaying))
    except (ValueError, OSError) as error:
        fail(error)
        service.fail("trainer", error)


if __name__ == "__main__":
    typer.run(main)
