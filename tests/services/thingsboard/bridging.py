"""A bridge in this process, and waiting for what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from services.thingsboard.bridge import Bridge, Options
from services.thingsboard.commands import commanding
from services.thingsboard.gateway import address
from tests.services.thingsboard.standin import Standin


@asynccontextmanager
async def bridged(broker: str, tb: Standin, *, commands: bool = False, models: Path | None = None) -> AsyncIterator[Bridge]:
    bridge = Bridge(Options(broker, address(f"mqtt://TOKEN@127.0.0.1:{tb.port}", None)))
    if commands:
        bridge.commands = commanding(bridge, broker, models)
    serving = asyncio.create_task(bridge.serve())
    try:
        yield bridge
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def until(ready: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not ready():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
