"""A handful of outputs that are images, as the device gave them in an evaluation: what a report shows of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from accelsim.datasets import Int64, spread
from accelsim.files import write_whole
from accelsim.int8.network import Activation, Network

SHOWN: Final = 6


def places(count: int) -> Int64:
    """Which of an evaluation's ``count`` samples are shown."""
    return spread(SHOWN, count)


def save(folder: Path, name: str, outputs: npt.NDArray[Any]) -> None:
    """Leaves an array in a run's folder, whole or not at all, as ``NAME.npy``."""
    with io.BytesIO() as file:
        np.save(file, outputs)
        write_whole(folder / f"{name}.npy", file.getvalue())


def read(folder: Path, name: str, network: Network, count: int | None = None) -> Activation:
    """Outputs (N, H, W, C) of the network from a run's folder; ``count`` of them, where that is known.

    Raises ValueError naming the file where they are not.
    """
    path, last = folder / f"{name}.npy", network.layers[-1]
    try:
        outputs: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: {error}; start the run anew") from error
    if outputs.shape[1:] != last.shape or outputs.dtype != last.dtype or len(outputs) != (count or len(outputs)):
        raise ValueError(
            f"{path}: {outputs.dtype} of {outputs.shape}, expected {last.dtype} of {last.shape}; start the run anew"
        )
    return outputs
