"""TensorBoard's event files of a run, from its folder: what ``tensorboard --logdir runs`` shows."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import fmean

from r2f.watch import need
from services.monitor.core import folder as folders
from services.monitor.core.curve import STAGES
from services.monitor.core.folder import Found
from services.trainer.core import fleet as fleets
from services.trainer.core import ledger, result

FOLDER = "tensorboard"


def write(folder: Path) -> list[Path]:
    """Writes event files into ``FOLDER`` of each of a run's devices, in place of what is there; where they are.

    Scalars by iteration: loss and gradient norm, accuracy of the batch, bytes on the link and direct, seconds of each stage;
    and evaluations by fault seed. Raises ValueError for a folder that is no run, or where tensorboardX is not installed.
    """
    need({"tensorboardX": "tensorboardX"}, "--tensorboard", "tensorboard")
    found, fleet = folders.read(folder), fleets.read(folder)
    return [_write(folder if fleet is None else folder / one.device, one) for one in found]


def _write(folder: Path, found: Found) -> Path:
    from tensorboardX import SummaryWriter

    at = folder / FOLDER
    if at.exists():
        shutil.rmtree(at)
    with SummaryWriter(str(at), write_to_disk=True) as writer:
        for row in ledger.read(folder / result.PROGRESS):
            up = row.uplink_inputs + row.uplink_layers + row.uplink_repairs
            values = {
                "train/loss": row.loss, "train/gradient_norm": row.grad_norm, "train/accuracy_percent": row.accuracy,
                "link/up_bytes": up, "link/up_direct_bytes": row.elements + row.input_bytes, "link/down_bytes": row.downlink,
                "link/repair_bytes": row.uplink_repairs, "time/iteration_seconds": row.wall_s,
            }  # fmt: skip
            for stage in STAGES:
                for kind, seconds in (("host", row.host_s), ("device", row.device_s)):
                    if stage in seconds:
                        values[f"time_{kind}/{stage}_seconds"] = seconds[stage]
            for name, value in values.items():
                if value is not None:  # a network that gives images has no right answers in a batch
                    writer.add_scalar(name, value, row.iteration)
        unit = "percent" if found.run.metric == "top1" else found.run.metric
        for score in found.run.scores:
            name = f"evaluation/{score.phase}_{'faulty' if score.faults else 'fault_free'}"
            known = [value for value in score.values if value is not None]
            for seed, value in enumerate(known):
                writer.add_scalar(f"{name}_{unit}_by_seed", value, seed)
            if known:
                writer.add_scalar(f"{name}_{unit}", fmean(known), found.run.done)
    return at
