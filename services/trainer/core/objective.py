"""What a run is about: the kind of output, the loss that it is trained by, and the metric that it is judged by.

Everything that differs between classes, images and masks follows from ``kind_of``; what a job leaves open is chosen here, once
(docs/training.md, "Losses and metrics").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, assert_never

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.datasets import Dataset
from accelsim.int8.network import Activation, Network, Shape, UInt8
from services.metric import METRICS, Metric
from services.trainer.core.job import Against, Job
from services.trainer.core.task import Criterion, Task

if TYPE_CHECKING:
    from accelsim.lowering import Holds

Float32 = npt.NDArray[np.float32]
Kind = Literal["classes", "pixels", "masks"]
"""Of an output: one vector of classes an image, the channels of an image, or a vector of classes each pixel."""

SMALLEST: Final = 7
"""Pixels that SSIM's window is wide: an image must have as many each way."""
LOOKED_AT: Final = 16
"""Training images whose outputs say it."""


def is_image(network: Network) -> bool:
    """Whether the output is an image, and not one vector."""
    return network.layers[-1].shape[:2] != (1, 1)


def kind_of(task: Task, network: Network) -> Kind:
    """What the network's output is, by the loss of a task that ``settled`` or ``check`` has seen."""
    if not is_image(network):
        return "classes"
    return "masks" if task.loss == "cross-entropy" else "pixels"


def possible(shape: Shape) -> tuple[Metric, ...]:
    """The metrics that mean something for an output of this shape, (H, W, C)."""
    height, width, channels = shape
    if (height, width) == (1, 1):
        return ("top1", "top5") if channels > 5 else ("top1",)
    found: tuple[Metric, ...] = ("psnr",)
    if min(height, width) >= SMALLEST:
        found += ("ssim",)
    return found if channels < 2 else (*found, "miou")


def fitted(task: Task, name: str, shape: Shape, data: Dataset) -> tuple[Metric, Criterion, Against]:
    """Metric, loss and what is measured against, for a network whose output is (H, W, C), where the task leaves them open.

    Raises ValueError where they do not fit one another, naming what would.
    """
    image = shape[:2] != (1, 1)
    metric, loss = task.metric, task.loss
    if metric is None:
        metric = ("miou" if data.kind == "masks" or loss == "cross-entropy" else "psnr") if image else "top1"
        if image and data.kind == "classes":
            raise ValueError(
                f"network {name} gives an image of {_by(shape)}, and {data.name} has classes: a network for "
                "classes gives one number a class, so end it with pooling over the image and a linear layer. An image network "
                f"is retrained against its own fault-free outputs with --metric {' or '.join(possible(shape))}"
            )
    if metric not in possible(shape):
        raise ValueError(
            f"--metric {metric}: means nothing for outputs of {_by(shape)}; network {name} can have "
            f"{', '.join(possible(shape))}"
        )
    against: Against = "labels"
    if image:
        fits = {"images": ("psnr", "ssim"), "masks": ("miou",)}.get(data.kind)
        if fits is not None and metric not in fits:
            raise ValueError(f"--metric {metric}: {data.name} has {data.kind} as targets, which allow {' or '.join(fits)}")
        against = "targets" if fits is not None else "fault-free outputs"
    if loss is None:
        loss = "l2" if image and metric != "miou" else "cross-entropy"
    if (loss == "cross-entropy") != (metric not in ("psnr", "ssim")):
        other = "l1 or l2" if metric in ("psnr", "ssim") else "cross-entropy"
        raise ValueError(f"--loss {loss}: does not lead to a better {METRICS[metric].title}; give {other}")
    return metric, loss, against


def settled(job: Job, network: Network, data: Dataset, path: str = "auto") -> Job:
    """The job with metric, loss, range of the outputs and what is measured against, as far as it leaves them open.

    ``path`` is that of the engine, by which the range is looked for on 16 training images. Raises ValueError where they do not
    fit one another, naming what would.
    """
    # Whoever only reads what a run has measured imports this module, and would wait for torch and numba.
    from accelsim.engine import shared
    from accelsim.lowering import black_and_white

    image = is_image(network)
    metric, loss, against = fitted(job, network.name, network.layers[-1].shape, data)
    extent = job.output_range
    if image and metric != "miou":
        images = network.quantize_images(data.train_images[:LOOKED_AT])
        extent = extent or black_and_white(float(real(network, shared(network, path).run(images)[-1]).min()))
    elif extent is not None:
        raise ValueError(f"--output-range: is of outputs that are pixels; those of {network.name} are classes")
    recipe, sgd, labels = job.recipe, job.sgd, job.labels
    if recipe.drawn is None:
        recipe = msgspec.structs.replace(recipe, drawn=1.0 if image else 0.0)
    if sgd.rule is None:
        sgd = msgspec.structs.replace(sgd, rule="adam" if image else "sgd")
    if labels == "auto":
        labels = "server" if against == "targets" and not (recipe.flip or recipe.shift or recipe.hard) else "teacher-soft"
    decided = {"metric": metric, "loss": loss, "output_range": extent, "against": against}
    found = msgspec.structs.replace(job, **decided, recipe=recipe, sgd=sgd, labels=labels)
    check(found, network)
    if image and found.labels == "server" and against != "targets":
        raise ValueError(f"--labels server: {data.name} has no targets; take teacher-soft, the fault-free network's outputs")
    return found


def check(job: Job, network: Network) -> None:
    """Raises ValueError where a job cannot be of this network."""
    if not is_image(network):
        if job.loss not in (None, "cross-entropy") or job.metric not in (None, *possible(network.layers[-1].shape)):
            raise ValueError(
                f"job: metric {job.metric} and loss {job.loss} are no classifier's, which network {network.name} is"
            )
        return
    if (
        job.metric is None
        or job.loss is None
        or job.against == "labels"
        or job.metric not in possible(network.layers[-1].shape)
    ):
        raise ValueError(
            f"job: network {network.name} gives an image of {_by(network.layers[-1].shape)}: its job needs a metric "
            f"({', '.join(possible(network.layers[-1].shape))}), a loss, and what is measured against"
        )
    kind = kind_of(job, network)
    if kind == "pixels" and job.output_range is None:
        raise ValueError("job: outputs that are pixels need output_range, the values of black and white")
    if job.labels == "device":
        raise ValueError("--labels device: targets that are images do not cross the link; take teacher-soft, or server")
    if job.recipe.hard:
        raise ValueError("--hard-labels: are the device's, which has none for images; leave it out")
    moved = job.labels == "server" and (job.recipe.flip or job.recipe.shift)
    if moved:
        raise ValueError("--flip, --shift: targets would stay where they are; leave them out, or take --labels teacher-soft")


def real(network: Network, outputs: Activation) -> Float32:
    """Outputs (N, H, W, C) in real units."""
    return np.asarray(outputs.astype(np.float32) * np.float32(network.layers[-1].scale), np.float32)


def probabilities(network: Network, output: Activation, temperature: float) -> npt.NDArray[np.float32]:
    """Class probabilities of the network's output divided by a temperature: (N, C), or (N, H, W, C) of each pixel."""
    steps = output if is_image(network) else output.reshape(len(output), -1)
    logits = steps.astype(np.float32) * np.float32(network.layers[-1].scale / temperature)
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    return np.asarray(logits / logits.sum(axis=-1, keepdims=True), np.float32)


def pixels(task: Task, targets: UInt8) -> Float32:
    """Target images uint8 (N, H, W, C) as a network's outputs have them: 0 and 255 are the ends of the task's range."""
    assert task.output_range is not None
    low, high = task.output_range
    return np.asarray(np.float32(low) + targets.astype(np.float32) * np.float32((high - low) / 255), np.float32)


def span(task: Task) -> float:
    """Difference of white and black."""
    assert task.output_range is not None
    return task.output_range[1] - task.output_range[0]


def truth_shape(network: Network) -> tuple[int, ...]:
    """Shape of what is right of one image: a number a class, or the output's own."""
    shape = network.layers[-1].shape
    return tuple(shape) if is_image(network) else (shape[2],)


def fitting(kind: Kind, network: Network, own: npt.NDArray[np.integer], where: str) -> None:
    """Raises ValueError naming ``where`` unless labels or targets are as ``kind`` has them."""
    height, width, channels = network.layers[-1].shape
    match kind:
        case "classes":
            wanted: tuple[int, ...] = ()
        case "masks":
            wanted = (height, width)
        case "pixels":
            wanted = (height, width, channels)
        case _:
            assert_never(kind)
    if own.shape[1:] != wanted or not np.issubdtype(own.dtype, np.integer) or (kind != "classes" and own.dtype != np.uint8):
        dtype = "integers" if kind == "classes" else "uint8"
        raise ValueError(
            f"{where}: expected {dtype} of shape (N{''.join(f', {n}' for n in wanted)}), got {own.dtype} of {own.shape}"
        )
    if kind == "masks" and len(own) and int(own.max()) >= channels:
        raise ValueError(f"{where}: classes reach {own.max()}, network {network.name} knows 0 to {channels - 1}")


def holds(task: Task, data: Dataset) -> Holds:
    """What ``settled`` will take the output to hold where it is an image; None where the task is of classes."""
    if task.metric == "miou" or (task.metric is None and (data.kind == "masks" or task.loss == "cross-entropy")):
        return None if task.metric is None and data.kind == "classes" else "classes"
    if task.metric in ("psnr", "ssim") or (task.metric is None and data.kind in ("images", "nothing")):
        return task.output_range or "pixels"
    return None


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))
