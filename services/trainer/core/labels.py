"""Where a batch's labels come from: the device, the server's list, or a fault-free teacher (architecture.md, "Learning")."""

from __future__ import annotations

from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Activation, Network, UInt8
from services.trainer.core import objective
from services.trainer.core.loss import Labels, Soft, Targets
from services.trainer.core.task import Task

Int64 = npt.NDArray[np.int64]
Own = Int64 | UInt8
"""What the server has of its own: class numbers int64 (N,), masks of them uint8 (N, H, W), or images uint8 (N, H, W, C)."""


def choose(
    task: Task, network: Network, *, device: Int64 | None, server: Own | None, teacher: tuple[Network, Activation] | None
) -> Labels:
    """The labels of a batch from the source that the run is configured for, as its loss takes them.

    ``teacher``: the network from before retraining and its output (N, H, W, C) on the batch, without faults.
    Raises ValueError if that source has none: a run never changes its source silently.
    """
    kind = objective.kind_of(task, network)
    if task.labels in ("device", "server"):
        own = _given(task.labels, device if task.labels == "device" else server)
        if kind == "pixels":
            return Targets(objective.pixels(task, _bytes(own)), _distance(task), objective.span(task))
        return own.astype(np.int64, copy=False)
    if teacher is None:
        raise _none("teacher")
    network, output = teacher
    match kind:
        case "pixels":
            return Targets(objective.real(network, output), _distance(task), objective.span(task))
        case "classes" | "masks":
            if task.labels == "teacher":
                steps = output if kind == "masks" else output.reshape(len(output), -1)
                return np.asarray(steps.argmax(axis=-1), np.int64)
            recipe = task.recipe
            hard = None
            if recipe.hard:
                given = _given("device", device)
                hard = given.astype(np.int64, copy=False)
            return Soft(objective.probabilities(network, output, recipe.temperature), recipe.temperature, hard, recipe.hard)
        case _:
            assert_never(kind)


def right(task: Task, network: Network, own: Own) -> npt.NDArray[np.float32]:
    """What labels of the device's or the server's say that outputs should be: probabilities (N, C) or (N, H, W, C), or images.

    Raises ValueError where they are no classes of the network's.
    """
    kind = objective.kind_of(task, network)
    if kind == "pixels":
        return objective.pixels(task, _bytes(own))
    classes = network.layers[-1].shape[2]
    if own.size and not 0 <= own.min() <= own.max() < classes:
        raise ValueError(f"labels run from {own.min()} to {own.max()}, but the network knows classes 0 to {classes - 1}")
    return np.eye(classes, dtype=np.float32)[own]


def taught(task: Task, network: Network, outputs: Activation) -> npt.NDArray[np.float32]:
    """The same of fault-free outputs (N, H, W, C) of the network from before retraining."""
    if objective.kind_of(task, network) == "pixels":
        return objective.real(network, outputs)
    return objective.probabilities(network, outputs, 1.0)


def _distance(task: Task) -> Literal["l1", "l2"]:
    if task.loss not in ("l1", "l2"):
        raise ValueError(f"job: loss {task.loss} is none of pixels; give l1 or l2")
    return task.loss


def _bytes(own: Own) -> UInt8:
    if own.dtype != np.uint8:
        raise ValueError(f"target images are {own.dtype}, expected uint8")
    return own.astype(np.uint8, copy=False)


def _given(source: str, labels: Own | None) -> Own:
    if labels is None:
        raise _none(source)
    return labels


def _none(source: str) -> ValueError:
    return ValueError(f"labels are to come from the {source}, which gave none; choose another source of labels")
