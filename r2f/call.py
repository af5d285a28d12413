"""``r2f.retrain``: a run from Python."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from r2f import folders, run
from r2f import settings as settings_file
from r2f.devices.report import FleetReport
from r2f.display import Display
from r2f.report import Report
from services.bus.messages import Progress


class _Calling(Display):
    """A display that tells a function of every step, too."""

    def __init__(self, console: Console, on_progress: Callable[[Progress], None] | None) -> None:
        super().__init__(console)
        self._on_progress = on_progress

    def progress(self, message: Progress) -> None:
        super().progress(message)
        if self._on_progress is not None:
            self._on_progress(message)


def call(
    out: Path,
    config: Path | None,
    on_progress: Callable[[Progress], None] | None,
    quiet: bool,
    settings: dict[str, Any],
) -> Report | FleetReport:
    """See ``r2f.retrain``."""
    base = None if config is None else settings_file.read(config)
    parsed = settings_file.parse(settings, base)

    def work() -> Report | FleetReport:
        with folders.new(out, parsed.network) as folder, _Calling(Console(quiet=quiet), on_progress) as display:
            return run.start(parsed, folder, display)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def one(found: Report | FleetReport) -> Report:
    """The report of a run of one device. Raises ValueError for one of several."""
    if isinstance(found, FleetReport):
        raise ValueError(
            f"the run in {found.folder} is of {len(found.devices)} devices: r2f.retrain_fleet returns their report"
        )
    return found


def several(found: Report | FleetReport) -> FleetReport:
    """The report of a run of several devices. Raises ValueError for one of one."""
    if not isinstance(found, FleetReport):
        raise ValueError(f"the run in {found.folder} is of one device: r2f.retrain returns its report")
    return found
