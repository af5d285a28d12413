"""A data set as everything else sees it, and how a part of it is chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Network, Shape, UInt8

Int64 = npt.NDArray[np.int64]


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, the array and what it should have been."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Dataset:
    """Images to retrain on, and images held out from that. ``mean`` and ``std`` are a channel's, of pixels in 0..1."""

    name: str
    train_images: UInt8
    """(N, H, W, C)"""
    train_labels: Int64
    """(N,)"""
    test_images: UInt8
    test_labels: Int64
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None
    """Name of class k at place k, where the source has names: the class list's, else those of a folder's class folders."""
    notes: tuple[str, ...] = ()
    """What was left aside and a person should know of, a line each."""

    @property
    def shape(self) -> Shape:
        """(H, W, C) of one image."""
        h, w, c = self.train_images.shape[1:]
        return h, w, c

    @property
    def classes(self) -> int:
        """Number of names, or one more than the largest label where there are no names."""
        if self.class_names is not None:
            return len(self.class_names)
        return 1 + max(int(self.train_labels.max()), int(self.test_labels.max()))

    def check(self, network: Network) -> None:
        """Raises DataError unless the network takes these images and its outputs are these classes."""
        if self.shape != network.input_shape:
            raise DataError(
                f"{self.name}: images are {by(self.shape)}, network {network.name} takes {by(network.input_shape)}; "
                "give a folder of images (they are resized) or a network of that input size"
            )
        height, width, known = network.layers[-1].shape
        if (height, width) != (1, 1):
            raise DataError(
                f"network {network.name} gives {by((height, width, known))} numbers an image; "
                "to retrain on classes it must give one a class"
            )
        if self.class_names is not None and len(self.class_names) != known:
            raise DataError(
                f"{self.name}: {self.classes} classes ({few(self.class_names)}), network {network.name} knows {known}: "
                f"which are which? Give a class list, a file with the network's {known} class names in its order, one a line"
            )
        if self.classes > known:
            from_one = min(int(self.train_labels.min()), int(self.test_labels.min())) == 1
            raise DataError(
                f"{self.name}: labels reach {self.classes - 1}, network {network.name} knows classes 0 to {known - 1}"
                + ("; class 0 has no image: if the labels count from 1, subtract it" if from_one else "")
            )

    def digest(self) -> str:
        """Short hash of what two sides must agree on: the classes, their names, the size of an image.

        A device may have photos of its own, as many as it likes; their normalisation is the network's affair.
        """
        return hashlib.sha256(msgspec.json.encode((self.class_names, self.classes, self.shape))).hexdigest()[:16]

    def sha256(self) -> str:
        """Of every image and label, their shapes and their normalisation: equal where training and judging find the same."""
        of = hashlib.sha256(msgspec.json.encode((self.mean, self.std)))
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            of.update(repr((array.shape, array.dtype.str)).encode())
            of.update(np.ascontiguousarray(array).data)
        return of.hexdigest()


def spread(count: int, available: int) -> Int64:
    """Places of ``count`` samples among ``available``, ascending, evenly from the first to the last; all where there are fewer.

    Files are often sorted by class: the first ``count`` would be a few classes only.
    """
    if count < 1 or available < 1:
        raise ValueError(f"cannot take {count} samples of {available}: both must be 1 or more")
    return np.linspace(0, available - 1, min(count, available)).astype(np.int64)


def by(shape: Sequence[int]) -> str:
    """``(224, 224, 3)`` as a person writes it: ``224x224x3``."""
    return "x".join(map(str, shape))


def few(names: Sequence[str], most: int = 4) -> str:
    """The first names for a message, and a sign that there are more."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
