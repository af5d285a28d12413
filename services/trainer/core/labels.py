"""Where a batch's labels come from: the device, the server's list, or a fault-free teacher (architecture.md, "Learning")."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Activation, Network
from services.trainer.core.loss import Labels, Soft
from services.trainer.core.task import Task

Int64 = npt.NDArray[np.int64]


def choose(task: Task, *, device: Int64 | None, server: Int64 | None, teacher: tuple[Network, Activation] | None) -> Labels:
    """The labels of a batch from the source that the run is configured for.

    ``teacher``: the network from before retraining and its output (N, 1, 1, C) on the batch, without faults.
    Raises ValueError if that source has none: a run never changes its source silently.
    """
    if task.labels in ("device", "server"):
        return _given(task.labels, device if task.labels == "device" else server)
    if teacher is None:
        return _given("teacher", None)
    network, output = teacher
    steps = output.reshape(len(output), -1)
    if task.labels == "teacher":
        return np.asarray(steps.argmax(axis=1), np.int64)
    recipe = task.recipe
    hard = _given("device", device) if recipe.hard else None
    soft = probabilities(network, output, recipe.temperature)
    return Soft(soft, recipe.temperature, hard, recipe.hard)


def probabilities(network: Network, output: Activation, temperature: float) -> npt.NDArray[np.float32]:
    """Class probabilities (N, C) of the network's output (N, 1, 1, C), divided by a temperature."""
    steps = output.reshape(len(output), -1)
    logits = steps.astype(np.float32) * np.float32(network.layers[-1].scale / temperature)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    return np.asarray(logits / logits.sum(axis=1, keepdims=True), np.float32)


def _given(source: str, labels: Int64 | None) -> Int64:
    if labels is None:
        raise ValueError(f"labels are to come from the {source}, which gave none; choose another source of labels")
    return labels
