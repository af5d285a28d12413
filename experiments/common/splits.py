"""Which images may choose what: every data set in four parts, once and here.

- *report*: the set's own test images. Accuracy that is told to anybody is of these, and nothing was chosen by them.
- *selection*: every fifth training image. Whatever is chosen (ranges, rates, methods) is chosen by these, with networks that
  were trained on none of them.
- *training*: the other training images.
- *calibration*: those of the training part by which a network is quantised (``r2f.prepare.calibration``). Quantising looks
  at no label, and a network that was fitted to an image twice knows it no better than one that was fitted once; with 400
  photos at hand, a part of its own would cost training more than it is worth.

Once all is chosen, the network that is reported is retrained on training and selection images. What of them the device holds
out to decide what is deployed is the trainer's affair (docs/training.md).

Where it is chosen how much a chip is retrained, *report* is cut in halves (``halved``): the CIFAR weights were fitted to all
training images, the selection part too, and on those a faulty chip loses up to twice as much as on others.

Every fifth, and not the last fifth, since files are often sorted by class.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from accelsim.datasets import DataError, Dataset, Int64, spread
from r2f import prepare

EVERY: Final = 5
"""One of so many training images is for selection."""


def selection(count: int) -> Int64:
    """Places, among ``count`` training images, of those that choose."""
    return np.arange(EVERY - 1, count, EVERY)


def training(count: int) -> Int64:
    """Places of all others, which train."""
    return np.setdiff1d(np.arange(count), selection(count))


def calibration(count: int) -> Int64:
    """Places of those that quantise, a part of ``training``."""
    places = training(count)
    return places[spread(prepare.CALIBRATION, len(places))]


def choosing(data: Dataset) -> Dataset:
    """The data set as whoever chooses may see it: trained on its training part, tested on its selection part."""
    count = len(data.train_images)
    _enough(data)
    learnt, chooses = training(count), selection(count)
    return replace(
        data,
        train_images=data.train_images[learnt],
        train_labels=data.train_labels[learnt],
        test_images=data.train_images[chooses],
        test_labels=data.train_labels[chooses],
    )


def reporting(data: Dataset, other: Path | None = None) -> Dataset:
    """The data set as it is reported: trained on all that is not reported, tested on its own test images, or ``other``'s.

    ``other`` is an npz file with ``images`` uint8 (N, H, W, C) and ``labels`` (N,). Raises DataError that names the file and
    what is wrong with it.
    """
    _enough(data)
    if other is None:
        return data
    images, labels = _others(other)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != data.shape:
        raise DataError(
            f"{other}: images are {images.dtype} {images.shape}; expected uint8 (N, {', '.join(map(str, data.shape))})"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(f"{other}: labels are {labels.dtype} {labels.shape}; expected whole numbers ({len(images)},)")
    if not len(images):
        raise DataError(f"{other}: images is empty; nothing can be reported on no images")
    if data.classes and not 0 <= int(labels.min()) <= int(labels.max()) < data.classes:
        raise DataError(f"{other}: labels run from {labels.min()} to {labels.max()}; {data.name} has 0 to {data.classes - 1}")
    return replace(data, name=f"{data.name}, reported on {other.name}", test_images=images, test_labels=labels.astype(np.int64))


def halved(data: Dataset) -> tuple[Dataset, Dataset]:
    """The data set with half of its test images, by which something may be chosen, and with the other half, which is reported.

    Raises DataError where there are fewer than two.
    """
    if len(data.test_images) < 2:
        raise DataError(f"{data.name}: {len(data.test_images)} test images cannot be halved; 2 at least")
    first, second = (
        replace(data, test_images=data.test_images[begin::2], test_labels=data.test_labels[begin::2]) for begin in (0, 1)
    )
    return first, second


def _enough(data: Dataset) -> None:
    if len(data.train_images) < EVERY:
        raise DataError(f"{data.name}: {len(data.train_images)} training images cannot be split; {EVERY} at least")


def _others(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        with np.load(path) as arrays:
            return arrays["images"], arrays["labels"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: {error}; expected an .npz file with the arrays images and labels") from error
