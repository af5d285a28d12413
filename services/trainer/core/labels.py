"""Where a batch's labels come from: the device, the server's list, or a fault-free teacher (architecture.md, "Learning")."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Activation, Network
from services.trainer.core.replay import Labels
from services.trainer.core.task import Source


def choose(
    source: Source,
    *,
    device: npt.NDArray[np.int64] | None = None,
    server: npt.NDArray[np.int64] | None = None,
    teacher: Labels | None = None,
) -> Labels:
    """The labels of a batch from the source that the run is configured for.

    Raises ValueError if that source has none: a run never changes its source silently.
    """
    found: Labels | None = {"device": device, "server": server}.get(source, teacher)
    if found is None:
        raise ValueError(f"labels are to come from the {source}, which gave none; choose another source of labels")
    return found


def teach(network: Network, output: Activation, *, soft: bool) -> Labels:
    """Labels (N,) or class probabilities (N, C) from the output (N, 1, 1, C) of a fault-free run of the network.

    ``network`` is the one from before retraining; its output on the received inputs costs the server one fault-free run.
    """
    steps = output.reshape(len(output), -1)
    if not soft:
        return np.asarray(steps.argmax(axis=1), np.int64)
    logits = steps.astype(np.float32) * np.float32(network.layers[-1].scale)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    return np.asarray(logits / logits.sum(axis=1, keepdims=True), np.float32)
