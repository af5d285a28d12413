"""Data sets: scikit-learn's digits, npz files, and folders of images."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from accelsim.int8.network import Network, Shape, UInt8

Int64 = npt.NDArray[np.int64]

DIGITS = "digits"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HELD_OUT = 4
"""Where a source has no test images of its own, every fourth image of each class is held out, in its own order."""
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_HELD_OUT_KEYS = (("test_images", "test_labels"), ("val_images", "val_labels"))


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

    @property
    def shape(self) -> Shape:
        """(H, W, C) of one image."""
        h, w, c = self.train_images.shape[1:]
        return h, w, c

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return 1 + max(int(self.train_labels.max()), int(self.test_labels.max()))

    def check(self, network: Network) -> None:
        """Raises DataError unless the network takes these images and can tell these classes apart."""
        if self.shape != network.input_shape:
            raise DataError(
                f"{self.name}: images are {_by(self.shape)}, network {network.name} takes {_by(network.input_shape)}; "
                "give a folder of images (they are resized) or a network of that input size"
            )
        known = network.layers[-1].shape[2]
        if self.classes > known:
            raise DataError(
                f"{self.name}: labels reach {self.classes - 1}, network {network.name} knows classes 0 to {known - 1}"
            )


def load(
    source: str | Path,
    *,
    shape: Shape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """The data set that ``source`` names: ``digits``, an npz file, or a folder of images.

    - ``digits``: scikit-learn's 1,797 handwritten digits, 8x8x1, pixels 0..16 stretched to 0..255.
    - ``*.npz``: ``train_images`` (N, H, W, C) uint8 with ``train_labels`` (N,), and ``test_images`` or ``val_images``
      with their labels.
    - a folder with one folder a class, or two such folders named ``train`` and ``test`` (or ``val``); every image is
      scaled and cropped to ``shape`` (H, W, C), which is then required.

    Without a test part every fourth image of each class is held out. ``mean`` and ``std`` default to ImageNet's for
    colour images and to the training images' own for others.

    Raises DataError, which names the file and what is wrong with it.
    """
    path = Path(source)
    if str(source) == DIGITS:
        parts = _digits()
    elif path.suffix == ".npz":
        parts = _npz(path)
    elif path.is_dir():
        if shape is None:
            raise DataError(f"{path}: the size of the network's input must be given for a folder of images")
        parts = _folder(path, shape)
    else:
        raise DataError(f"{path}: not found; data is 'digits', an .npz file or a folder with one folder a class")
    train_images, train_labels, test_images, test_labels = parts
    if shape is not None and train_images.shape[1:] != shape:
        raise DataError(f"{source}: images are {_by(train_images.shape[1:])}, expected {_by(shape)}")
    if mean is None or std is None:
        mean, std = _statistics(train_images)
    if not len(mean) == len(std) == train_images.shape[3] or min(std) <= 0:
        raise DataError(f"{source}: mean {mean} and std {std} do not fit {train_images.shape[3]} channels")
    return Dataset(
        name=str(source) if str(source) == DIGITS else path.name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
    )


Parts = tuple[UInt8, Int64, UInt8, Int64]


def _digits() -> Parts:
    # Loaded here: scikit-learn takes a second to import and only this data set needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    return _split(images, digits.target.astype(np.int64))


def _npz(path: Path) -> Parts:
    try:
        # Opened here, not by NumPy: it leaves the file open when it is not a zip file.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            held_out = next((keys for keys in _HELD_OUT_KEYS if keys[0] in file), None)
            train = _pair(path, file, "train_images", "train_labels")
            if held_out is None:
                return _split(*train)
            test = _pair(path, file, *held_out)
    except DataError:
        raise
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as npz: {error}") from error
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{path}: train_images are {_by(train[0].shape[1:])}, {held_out[0]} are {_by(test[0].shape[1:])}")
    return *train, *test


def _pair(path: Path, file: Any, images_key: str, labels_key: str) -> tuple[UInt8, Int64]:
    for key in (images_key, labels_key):
        if key not in file:
            raise DataError(f"{path}: array {key} is missing; it holds {', '.join(sorted(file)) or 'nothing'}")
    images, labels = file[images_key], file[labels_key]
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise DataError(f"{path}: {images_key} is {images.dtype} of shape {images.shape}, expected uint8 of shape (N, H, W, C)")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise DataError(
            f"{path}: {labels_key} is {labels.dtype} of shape {labels.shape}, expected integers of shape ({len(images)},)"
        )
    if int(labels.min()) < 0:
        raise DataError(f"{path}: {labels_key} holds {labels.min()}; classes count from 0")
    return np.ascontiguousarray(images), labels.astype(np.int64)


def _folder(path: Path, shape: Shape) -> Parts:
    train = path / "train"
    if not train.is_dir():
        return _split(*_images(path, _classes(path), shape))
    held_out = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    classes = _classes(train)
    if held_out is None:
        return _split(*_images(train, classes, shape))
    return *_images(train, classes, shape), *_images(held_out, classes, shape)


def _classes(path: Path) -> list[str]:
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{path}: no folders in it; images lie in one folder a class")
    return classes


def _images(path: Path, classes: list[str], shape: Shape) -> tuple[UInt8, Int64]:
    unknown = sorted(set(_classes(path)) - set(classes))
    if unknown:
        raise DataError(f"{path}: class {unknown[0]!r} is not among the training classes")
    files = [
        (file, label)
        for label, name in enumerate(classes)
        if (path / name).is_dir()
        for file in sorted((path / name).iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(f"{path}: no images in its class folders; known are {', '.join(sorted(_SUFFIXES))}")
    images = np.empty((len(files), *shape), np.uint8)
    for image, (file, _) in zip(images, files, strict=True):
        image[:] = _image(file, shape)
    return images, np.array([label for _, label in files], np.int64)


def _image(file: Path, shape: Shape) -> UInt8:
    """One image, scaled so that it covers (H, W) and cropped around its centre; grey for one channel, else RGB."""
    height, width, channels = shape
    if channels not in (1, 3):
        raise DataError(f"{file}: a network with {channels} input channels cannot take image files; use npz")
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            fitted = ImageOps.fit(upright.convert("L" if channels == 1 else "RGB"), (width, height))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise DataError(f"{file}: cannot be read as an image: {error}") from error
    return np.asarray(fitted, np.uint8).reshape(shape)


def _split(images: UInt8, labels: Int64) -> Parts:
    """Every fourth image of each class is held out, whatever the order of the classes: the same on every machine."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    held_out = np.zeros(len(labels), bool)
    held_out[order] = (np.arange(len(labels)) - starts) % HELD_OUT == HELD_OUT - 1
    if not held_out.any():
        raise DataError(f"no class has {HELD_OUT} images, so none can be held out; give test images")
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def _statistics(images: UInt8) -> tuple[Sequence[float], Sequence[float]]:
    if images.shape[3] == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    mean = images.mean(axis=(0, 1, 2)) / 255
    return mean.tolist(), np.maximum(images.std(axis=(0, 1, 2)) / 255, 1e-3).tolist()


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
