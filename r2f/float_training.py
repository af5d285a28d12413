"""Float training of a small network from nothing, so that the demo needs no downloaded weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from accelsim.datasets import Dataset, Int64
from accelsim.int8.network import UInt8
from accelsim.lowering import normalise
from services.trainer.core.evaluation import Evaluation, Reference, accuracy, measure


def train(build: Callable[[], nn.Module], data: Dataset, *, seed: int = 0, epochs: int = 16, batch: int = 32) -> nn.Module:
    """A module from ``build``, trained on the data set's training images; seconds for 8x8 digits.

    SGD with momentum under a one-cycle rate, images shifted by up to a pixel. The same arguments give the same weights
    on the same machine: one thread, which for batches this small is also the fastest. Returned in eval mode.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _train(build(), data, epochs, batch)
    finally:
        torch.set_num_threads(threads)


def _train(module: nn.Module, data: Dataset, epochs: int, batch: int) -> nn.Module:
    module.train()
    images = normalised(data.train_images, data)
    labels = torch.from_numpy(data.train_labels)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    if len(images) < batch:
        raise ValueError(
            f"{data.name}: {len(images)} training images are too few to train a network from nothing ({batch} at least); "
            "give trained weights with --network and --weights, or more images"
        )
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps, pct_start=0.2)
    for rows in _batches(len(images), batch, epochs):
        loss = nn.functional.cross_entropy(module(_shifted(images[rows])), labels[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return module.eval()


def evaluate(module: nn.Module, images: UInt8, truth: Int64 | Reference, data: Dataset) -> Evaluation:
    """What a float module comes to on uint8 images (N, H, W, C), measured in eval mode whatever mode it is in.

    ``truth``: labels (N,), or what its images are held against. Among equal outputs the lowest class comes
    first. Raises ValueError where a label is no class of the module's.
    """
    was_training = module.training
    module.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(images), 256):
            outputs = module(normalised(images[start : start + 256], data))
            outputs = outputs.permute(0, 2, 3, 1) if outputs.dim() == 4 else outputs
            places = np.arange(start, min(start + 256, len(images)))
            of = truth.at(places) if isinstance(truth, Reference) else truth[places]
            found.append(measure(outputs.numpy(), 1.0, of))
    module.train(was_training)
    return accuracy([found])


def normalised(images: UInt8, data: Dataset) -> Tensor:
    """uint8 images (N, H, W, C) as a module takes them: float32 (N, C, H, W), normalised by the set's mean and std."""
    return normalise(images, data.mean, data.std)


def _batches(count: int, batch: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count)
        yield from order[: count // batch * batch].split(batch)  # type: ignore[no-untyped-call]


def _shifted(images: Tensor) -> Tensor:
    """The whole batch moved by up to one pixel each way; the edge repeats."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    y, x = (int(torch.randint(0, 3, ())) for _ in range(2))
    return padded[:, :, y : y + images.shape[2], x : x + images.shape[3]]
