"""The end of a child process that this one waits for; apart from ``broker.child``, which every child imports as it starts."""

from __future__ import annotations

import asyncio

GRACE_S = 3.0
"""From SIGTERM to SIGKILL."""


async def stop(process: asyncio.subprocess.Process, grace_s: float = GRACE_S) -> None:
    """End a process: SIGTERM, and SIGKILL where that is not heard within ``grace_s`` seconds.

    Not by ``asyncio.timeout``, which up to Python 3.11.2 forgets its own end in a task that was cancelled before, as one that
    cleans up mostly was.
    """
    if process.returncode is not None:
        return
    process.terminate()
    ending = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait([ending], timeout=grace_s)
    finally:
        if process.returncode is None:
            process.kill()
    await ending
