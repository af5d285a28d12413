"""A run of several devices, in one process: a model for each, side by side."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from services.bus import BusError, service
from services.trainer import training, waiting
from services.trainer.core import result
from services.trainer.core.fleet import Fleet
from services.trainer.core.parts import Replaying
from services.trainer.ranks import Gone

log = structlog.get_logger()


async def own(
    fleet: Fleet, folder: Path, common: service.Common, path: str, replaying: Replaying | None = None
) -> None:  # fmt: skip
    """Each device's own run, in ``folder/{device}``, until every one is done or given up with the reason in its folder.

    A device that gives up disturbs no other. What a device's run ends with does not depend on the others: it is what it would
    end with alone. ``replaying``: see ``Learner``. Raises Stopped, once nothing goes on, where somebody had one stopped.
    """
    turn = asyncio.Lock()
    stopped: list[service.Stopped] = []

    async def one(device: str) -> None:
        structlog.contextvars.bind_contextvars(device=device)
        mine = folder / device
        if waiting.outcome(mine) is not None:
            return
        (mine / result.STOPPED).unlink(missing_ok=True)
        try:
            async with (
                service.bus_of("trainer", common, device, readers=("codec-server",)) as bus,
                service.telling_memory(bus),
            ):
                await training.run(bus, mine, path, turn, replaying)
        except (BusError, ValueError, OSError) as error:
            log.error("device given up", error=str(error))
            waiting.give_up(mine, error)
        except service.Stopped as error:
            log.warning("device stopped", reason=str(error))
            waiting.stop(mine, str(error))
            stopped.append(service.Stopped(f"{device}: {error}"))
        except Gone:
            raise  # no device's fault: the trainer starts over
        except Exception as error:
            log.error("ended by a mistake of its own, please report it", exc_info=error)
            waiting.give_up(mine, error)

    await asyncio.gather(*(one(device) for device in fleet.devices))
    if stopped:
        raise service.Stopped("; ".join(map(str, stopped)))
