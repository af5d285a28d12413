"""What devices answered when a network was tried on them: a file a trial in the folder of a run with one model for all.

Each is whole on the disk before the checkpoint behind it is, so a run that goes on from a checkpoint finds all up to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from accelsim.files import write_whole
from accelsim.int8 import storage
from services.trainer.core.checkpoint import CheckpointError
from services.trainer.core.common import Judged, Trial
from services.trainer.core.objective import truth_shape

PATTERN = "trial-*.safetensors"


def write(folder: Path, trial: Trial, config: str) -> None:
    """Puts a trial into a run's folder; ``config`` is the digest of the run's settings."""
    tensors: dict[str, npt.NDArray[Any]] = {"network": np.frombuffer(storage.to_bytes(trial.network), np.uint8)}
    for device, judged in trial.judged.items():
        tensors[f"truth/{device}"], tensors[f"found/{device}"] = judged.truth, judged.found
    head = json.dumps({"iteration": trial.iteration, "name": trial.name, "config": config})
    write_whole(folder / f"trial-{trial.iteration:010d}.safetensors", save(tensors, metadata={"r2f": head}))


def read(folder: Path, done: int, config: str) -> list[Trial]:
    """The trials of a run's first ``done`` iterations, in order; later ones are removed, as they are done again.

    Raises CheckpointError that names the file where it is damaged or another run's.
    """
    found = []
    for path in sorted(folder.glob(PATTERN)):
        trial = _read(path, config)
        if trial.iteration <= done:
            found.append(trial)
        else:
            path.unlink()
    return found


def _read(path: Path, config: str) -> Trial:
    try:
        with safe_open(path, framework="numpy") as file:
            head = json.loads((file.metadata() or {})["r2f"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = storage.from_bytes(tensors.pop("network").tobytes())
        iteration, name, of = int(head["iteration"]), str(head["name"]), head["config"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a trial of a network: {error}; start the run anew") from error
    if of != config:
        raise CheckpointError(f"{path}: written under other settings than this run's; start the run anew")
    judged = {}
    for device in sorted(name.removeprefix("found/") for name in tensors if name.startswith("found/")):
        truth, found = tensors.get(f"truth/{device}"), tensors[f"found/{device}"]
        if (
            truth is None
            or found.ndim != 2
            or truth.shape != (found.shape[1], *truth_shape(network))
            or found.dtype != np.float32
        ):
            raise CheckpointError(f"{path}: the answers of device {device} do not fit one another; start the run anew")
        judged[device] = Judged(truth, found)
    return Trial(iteration, name, network, judged)
