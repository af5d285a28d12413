"""A data set as everything else sees it, and how a part of it is chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Network, Shape, UInt8

Int64 = npt.NDArray[np.int64]
Kind = Literal["classes", "images", "masks", "nothing"]
"""What is known of each image of a set: its class, the image that it should become, the class of each pixel, or nothing."""


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, the array and what it should have been."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Dataset:
    """Images to retrain on, and images held out from that. ``mean`` and ``std`` are a channel's, of pixels in 0..1.

    What an image should give is a class, or an image or mask of its own, or nothing is known of it: ``kind``.
    """

    name: str
    train_images: UInt8
    """(N, H, W, C)"""
    train_labels: Int64
    """(N,); 0 for all where ``kind`` is not "classes"."""
    test_images: UInt8
    test_labels: Int64
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None
    """Name of class k at place k, where the source has names: the class list's, else those of a folder's class folders."""
    train_targets: UInt8 | None = None
    """Images (N, H, W, C), of any size, or masks (N, H, W) with the class of each pixel; ``test_targets`` likewise."""
    test_targets: UInt8 | None = None
    latents: bool = False
    """Whether the images (N, 1, 1, Z) are vectors that a generator starts from, of which nothing else is known."""
    notes: tuple[str, ...] = ()
    """What was left aside and a person should know of, a line each."""

    @property
    def shape(self) -> Shape:
        """(H, W, C) of one image."""
        h, w, c = self.train_images.shape[1:]
        return h, w, c

    @property
    def kind(self) -> Kind:
        """What is known of an image."""
        if self.latents:
            return "nothing"
        if self.train_targets is None:
            return "classes"
        return "masks" if self.train_targets.ndim == 3 else "images"

    @property
    def classes(self) -> int:
        """Number of names, or one more than the largest label, or class of a pixel, where there are no names; 0 without any."""
        if self.kind in ("images", "nothing"):
            return 0
        if self.train_targets is not None and self.test_targets is not None and self.class_names is None:
            return 1 + max(int(self.train_targets.max()), int(self.test_targets.max()))
        if self.class_names is not None:
            return len(self.class_names)
        return 1 + max(int(self.train_labels.max()), int(self.test_labels.max()))

    def check(self, network: Network, *, images: bool = False) -> None:
        """Raises DataError unless the network takes these images and its outputs are these classes.

        ``images``: outputs may be images or masks too, of the targets' size where the set has such.
        """
        if self.shape != network.input_shape:
            raise DataError(
                f"{self.name}: images are {by(self.shape)}, network {network.name} takes {by(network.input_shape)}; "
                "give a folder of images (they are resized) or a network of that input size"
            )
        height, width, known = network.layers[-1].shape
        if images and (height, width) != (1, 1):
            self._check_targets(network)
            return
        if self.kind != "classes":
            has = "holds latent vectors" if self.latents else f"has {self.kind} as targets"
            raise DataError(
                f"{self.name}: {has}, network {network.name} gives {by((height, width, known))}; "
                + ("take a network whose output is an image" if images else "this needs images with classes")
            )
        if (height, width) != (1, 1):
            raise DataError(
                f"network {network.name} gives {by((height, width, known))} numbers an image; "
                "to retrain on classes it must give one a class"
            )
        if self.class_names is not None and len(self.class_names) != known:
            raise DataError(
                f"{self.name}: {self.classes} classes ({few(self.class_names)}), network {network.name} knows {known}: "
                f"which are which? Give a class list (--classes FILE), the network's {known} class names in order, one a line"
            )
        if self.classes > known:
            from_one = min(int(self.train_labels.min()), int(self.test_labels.min())) == 1
            raise DataError(
                f"{self.name}: labels reach {self.classes - 1}, network {network.name} knows classes 0 to {known - 1}"
                + ("; class 0 has no image: if the labels count from 1, subtract it" if from_one else "")
            )

    def _check_targets(self, network: Network) -> None:
        height, width, channels = network.layers[-1].shape
        wanted = {"images": (height, width, channels), "masks": (height, width)}.get(self.kind)
        for part, targets in (("train", self.train_targets), ("test", self.test_targets)):
            if targets is not None and targets.shape[1:] != wanted:
                raise DataError(
                    f"{self.name}: {part}_targets are {by(targets.shape[1:])}, network {network.name} gives "
                    f"{by((height, width, channels))}; targets have the size of its outputs"
                )
        if self.kind == "masks" and self.classes > channels:
            raise DataError(
                f"{self.name}: masks reach class {self.classes - 1}, network {network.name} knows classes 0 to {channels - 1}"
            )

    def digest(self) -> str:
        """Short hash of what two sides must agree on: the classes, their names, the size of an image and of a target.

        A device may have photos of its own, as many as it likes; their normalisation is the network's affair.
        """
        agreed: tuple[object, ...] = (self.class_names, self.classes, self.shape)
        if self.kind != "classes":
            agreed += (self.kind, *(() if self.train_targets is None else self.train_targets.shape[1:]))
        return hashlib.sha256(msgspec.json.encode(agreed)).hexdigest()[:16]

    def sha256(self) -> str:
        """Of every image and label, their shapes and their normalisation: equal where training and judging find the same."""
        of = hashlib.sha256(msgspec.json.encode((self.mean, self.std)))
        targets = () if self.train_targets is None or self.test_targets is None else (self.train_targets, self.test_targets)
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels, *targets):
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
