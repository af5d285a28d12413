"""Float training of a small network from nothing, so that no weights need be downloaded.

``python -m r2f.float_training NETWORK FILE.safetensors`` trains one of ``zoo.TRAINED_HERE`` on its data set once and for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.torch import save
from torch import Tensor, nn

from accelsim import zoo
from accelsim.datasets import Dataset, Int64, load
from accelsim.files import write_whole
from accelsim.int8.network import UInt8
from accelsim.lowering import normalise
from accelsim.threads import one_thread
from services.trainer.core.evaluation import Evaluation, Reference, accuracy, measure


def train(build: Callable[[], nn.Module], data: Dataset, *, seed: int = 0, epochs: int = 16, batch: int = 32) -> nn.Module:
    """A module from ``build``, trained on the data set's training images; seconds for 8x8 digits.

    SGD with momentum under a one-cycle rate, images shifted by up to a pixel. The same arguments give the same weights
    on the same machine: one thread, which for batches this small is also the fastest. Returned in eval mode.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(build(), data, epochs, batch)


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


def train_images(
    build: Callable[[], nn.Module], data: Dataset, *, seed: int = 0, epochs: int = 16, batch: int = 16
) -> nn.Module:
    """A module from ``build``, trained to give the targets of the data set's training images; minutes for 64x64 pixels.

    Adam under a one-cycle rate, on the cross-entropy of each pixel where targets are masks, and the squared error where they
    are images, of which 0..255 are 0..1; images and targets mirrored left to right together. The same arguments give the same
    weights on the same machine, as in ``train``. Returned in eval mode.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train_images(build(), data, epochs, batch)


def _train_images(module: nn.Module, data: Dataset, epochs: int, batch: int) -> nn.Module:
    if data.train_targets is None:
        raise ValueError(f"{data.name}: has no targets to train a network for images on")
    if len(data.train_images) < batch:
        raise ValueError(f"{data.name}: {len(data.train_images)} training images are too few to train a network from nothing")
    module.train()
    images, masks = normalised(data.train_images, data), data.kind == "masks"
    targets = torch.from_numpy(data.train_targets)
    steps = epochs * (len(images) // batch)
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps, pct_start=0.2)
    for rows in _batches(len(images), batch, epochs):
        shown, wanted = images[rows], targets[rows].long() if masks else targets[rows].permute(0, 3, 1, 2).float() / 255
        if bool(torch.randint(0, 2, ())):
            shown, wanted = shown.flip(3), wanted.flip(2 if masks else 3)
        given = module(shown)
        loss = nn.functional.cross_entropy(given, wanted) if masks else nn.functional.mse_loss(given, wanted)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return module.eval()


def from_nothing(network: str, data: Dataset, seed: int = 0) -> nn.Module:
    """One of ``zoo.TRAINED_HERE``, trained on a data set that fits it. Raises ValueError where it has no targets or too few
    images."""
    if data.kind == "classes":
        return train(lambda: zoo.build(network, data.classes), data, seed=seed)
    return train_images(lambda: zoo.build(network, data.classes), data, seed=seed)


def main(network: str, file: Path, seed: int = 0) -> None:
    """Train a network of the zoo on the data set that is meant for it, and leave its weights in a .safetensors file."""
    if network not in zoo.TRAINED_HERE:
        raise typer.BadParameter(f"network {network!r}: those trained here are {', '.join(zoo.TRAINED_HERE)}")
    if file.suffix != ".safetensors":
        raise typer.BadParameter(f"{file}: weights go into a .safetensors file")
    data = load(zoo.TRAINED_HERE[network])
    module = from_nothing(network, data, seed)
    write_whole(file, save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))
    print(f"{file}: {network}, trained on {data.name}")


def _batches(count: int, batch: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count)
        yield from order[: count // batch * batch].split(batch)  # type: ignore[no-untyped-call]


def _shifted(images: Tensor) -> Tensor:
    """The whole batch moved by up to one pixel each way; the edge repeats."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    y, x = (int(torch.randint(0, 3, ())) for _ in range(2))
    return padded[:, :, y : y + images.shape[2], x : x + images.shape[3]]


if __name__ == "__main__":
    typer.run(main)
