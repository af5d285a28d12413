"""What a person uses: the command line ``r2f``, and ``retrain``, the same as a Python call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r2f.devices.report import FleetReport
    from r2f.report import Report
    from services.bus.messages import Progress

__all__ = ["retrain", "retrain_fleet"]


def retrain(
    *,
    out: str | Path = "runs",
    config: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Report:
    """Retrain a network as ``r2f retrain`` does, and return its report, whose ``folder`` is the run's.

    ``settings`` are the command's options with underscores: ``r2f.retrain(network="resnet20", weights="w.pth",
    data="cifar.npz", ber=1e-4, eval_samples=500)``. ``config`` is a file such as a run's ``run.toml``; settings given beside
    it win. ``on_progress`` is called with every event of the trainer (``phase`` before, train, after or done; in ``train``,
    ``step`` of ``steps`` iterations and ``value``, the loss), on a thread of its own where an event loop runs already, as in
    a notebook; an event sent while the broker restarts is lost, and what the function raises stops the run. ``quiet`` False
    shows the bars that the command shows.

    Raises ValueError for settings, data or networks that do not fit, PipelineError and BusError for a pipeline that fails.
    """
    from r2f.call import call, one

    return one(call(Path(out), None if config is None else Path(config), on_progress, quiet, settings))


def retrain_fleet(
    *,
    out: str | Path = "runs",
    config: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    quiet: bool = True,
    **settings: Any,
) -> FleetReport:
    """Retrain for several devices, as ``r2f retrain --device a,b,c`` does, and return their report.

    As ``retrain`` otherwise; the steps of ``on_progress`` are those of all devices together. A device that gave up is a row
    that says so, and why.
    """
    from r2f.call import call, several

    return several(call(Path(out), None if config is None else Path(config), on_progress, quiet, settings))
