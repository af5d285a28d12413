"""What a data set is read from, and its normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from accelsim.datasets import folder, made, npz
from accelsim.datasets.classlist import class_list
from accelsim.datasets.dataset import DataError, Dataset, Int64, by, few
from accelsim.datasets.spec import DIGITS, Spec
from accelsim.int8.network import Shape, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
KNOWN = "'digits', 'shapes', 'crops2x', 'latents:Z'"
HELD_OUT = 4
"""Where a source has no test images of its own, every fourth image of each class is held out, in its own order."""


def open(spec: Spec) -> Dataset:
    """The data set of a Spec. Raises DataError, which names the file and what is wrong with it."""
    names = None if spec.classes is None else class_list(spec.classes)
    return load(spec.source, shape=spec.image_size, mean=spec.mean, std=spec.std, classes=names)


def load(
    source: str | Path,
    *,
    shape: Shape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """The data set that ``source`` names: ``digits``, another that is made here, an npz file, or a folder of images.

    - ``digits``: scikit-learn's 1,797 handwritten digits, 8x8x1, pixels 0..16 stretched to 0..255.
    - ``shapes``, ``crops2x``, ``latents:Z[:N[:SEED]]``: see ``accelsim.datasets.made``.
    - ``*.npz``: ``train_images`` (N, H, W, C), or (N, H, W) for grey, uint8 with ``train_labels``: class numbers (N,) or
      (N, 1), or one-hot (N, K), or with ``train_targets`` (``npz.targets``); or ``latents``;
      and the same of ``test``, ``val``, ``valid`` or ``validation``.
    - a folder with one folder a class, or two such folders named ``train`` and ``test``, ``val``, ``valid`` or
      ``validation``; every image is scaled and cropped to ``shape`` (H, W, C), which is then required. Folders within
      class folders are searched. Classes are numbered in the order of their folders' names.

    ``classes`` are the names of the network's classes in its order: a folder's images are then numbered by it, whichever
    of the classes have a folder. Without a test part every fourth image of each class is held out. ``mean`` and ``std``
    default to ImageNet's for colour images and to the training images' own for others.

    Raises DataError, which names the file and what is wrong with it.
    """
    path = Path(source)
    names = None if classes is None else tuple(classes)
    notes: tuple[str, ...] = ()
    if made.is_made(str(source)):
        return _made(str(source), shape, mean, std, names)
    if path.suffix.lower() == ".npz" and path.is_file():
        found = npz.targets(path, shape)
        if found is not None:
            if names is not None and found.made.train_targets is not None and found.made.train_targets.ndim == 4:
                raise DataError(f"{path}: has images as targets, and no classes that --classes could name")
            return _dataset(path.resolve().name, found.made, shape, mean, std, names, found.notes)
    if str(source) == DIGITS:
        parts = split(*_digits())
        if path.exists():
            notes = (f"data is scikit-learn's digits; to read the folder or file of that name here, give ./{DIGITS}",)
    elif path.is_dir():
        if shape is None:
            raise DataError(
                f"{path}: the size of the network's input must be given for a folder of images (--image-size HxWxC)"
            )
        train, test, names, notes = folder.read(path, shape, names)
        parts = split(*train, where=str(path)) if test is None else (*train, *test)
    elif path.suffix.lower() == ".npz" and path.is_file():
        train, test, notes = npz.read(path, shape)
        parts = split(*train, where=str(path)) if test is None else (*train, *test)
    elif path.exists():
        raise DataError(f"{path}: neither an .npz file nor a folder; data is {KNOWN}, an .npz file or a folder of images")
    else:
        raise DataError(f"{path}: not found; data is {KNOWN}, an .npz file or a folder with one folder a class")
    train_images, train_labels, test_images, test_labels = parts
    if shape is not None and train_images.shape[1:] != shape:
        raise DataError(f"{source}: images are {by(train_images.shape[1:])}, expected {by(shape)}")
    if names is not None and str(source) == DIGITS and len(names) != len(np.unique(train_labels)):
        raise DataError(f"{source}: 10 classes, but the class list has {len(names)} names ({few(names)})")
    largest = max(int(train_labels.max()), int(test_labels.max()))
    if names is not None and largest >= len(names):
        raise DataError(f"{source}: labels reach {largest}, but the class list has {len(names)} names ({few(names)})")
    used_mean, used_std = _normalisation(str(source), train_images, mean, std)
    return Dataset(
        name=DIGITS if str(source) == DIGITS else path.resolve().name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        mean=used_mean,
        std=used_std,
        class_names=names,
        notes=notes,
    )


def _made(
    source: str, shape: Shape | None, mean: Sequence[float] | None, std: Sequence[float] | None,
    names: tuple[str, ...] | None,
) -> Dataset:  # fmt: skip
    """A data set that is made here."""
    notes = (f"data is made here; to read the folder or file of that name, give ./{source}",) if Path(source).exists() else ()
    if source == made.SHAPES:
        return _dataset(source, made.shapes(), shape, mean, std, names or made.CLASSES, notes)
    found = made.crops() if source == made.CROPS else made.latents(source)
    if names is not None:
        raise DataError(f"{source}: has no classes that --classes could name")
    return _dataset(source, found, shape, mean, std, None, notes)


def _dataset(
    name: str, found: made.Made, shape: Shape | None, mean: Sequence[float] | None, std: Sequence[float] | None,
    names: tuple[str, ...] | None, notes: tuple[str, ...],
) -> Dataset:  # fmt: skip
    """Images with targets, or latent vectors, as a data set."""
    latents = found.train_targets is None
    if shape is not None and found.train_images.shape[1:] != shape:
        raise DataError(f"{name}: images are {by(found.train_images.shape[1:])}, expected {by(shape)}")
    if latents and mean is None and std is None:
        mean, std = made.normalisation(found.train_images.shape[3])
    used_mean, used_std = _normalisation(name, found.train_images, mean, std)
    if names is not None and found.train_targets is not None and found.test_targets is not None:
        largest = max(int(found.train_targets.max()), int(found.test_targets.max()))
        if largest >= len(names):
            raise DataError(f"{name}: masks reach class {largest}, but the class list has {len(names)} names ({few(names)})")
    return Dataset(
        name=name,
        train_images=found.train_images,
        train_labels=np.zeros(len(found.train_images), np.int64),
        test_images=found.test_images,
        test_labels=np.zeros(len(found.test_images), np.int64),
        train_targets=found.train_targets,
        test_targets=found.test_targets,
        latents=latents,
        mean=used_mean,
        std=used_std,
        class_names=names,
        notes=notes,
    )


def _digits() -> tuple[UInt8, Int64]:
    # Loaded here: scikit-learn takes a second to import and only this data set needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def split(images: UInt8, labels: Int64, where: str = DIGITS) -> tuple[UInt8, Int64, UInt8, Int64]:
    """Training and held-out images and labels: every fourth of a class is held out, in any order of the classes.

    The same on every machine. Raises DataError naming ``where`` if no class has four images.
    """
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    held_out = np.zeros(len(labels), bool)
    held_out[order] = (np.arange(len(labels)) - starts) % HELD_OUT == HELD_OUT - 1
    if not held_out.any():
        raise DataError(f"{where}: no class has {HELD_OUT} images, so none can be held out; give test images")
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def _normalisation(
    where: str, images: UInt8, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as given, one number a channel, or the defaults. Raises DataError for what cannot be of pixels in 0..1."""
    channels = images.shape[3]
    if mean is None and std is None:
        if channels == len(IMAGENET_MEAN):
            return IMAGENET_MEAN, IMAGENET_STD
        own, spread_of = images.mean(axis=(0, 1, 2)) / 255, images.std(axis=(0, 1, 2)) / 255
        return tuple(own.tolist()), tuple(np.maximum(spread_of, 1e-3).tolist())
    if mean is None or std is None:
        raise DataError(f"{where}: {'mean' if std is None else 'std'} is given alone; give mean and std, or neither")
    used = []
    for name, values in (("mean", mean), ("std", std)):
        each = tuple(float(value) for value in values) * (channels if len(values) == 1 else 1)
        if len(each) != channels:
            raise DataError(f"{where}: {name} {tuple(values)} has {len(values)} numbers for {channels} channels")
        if not all(math.isfinite(value) and 0 <= value <= 1 for value in each) or (name == "std" and min(each) <= 0):
            allowed = "0 to 1" if name == "mean" else "more than 0 and at most 1"
            raise DataError(f"{where}: {name} {tuple(values)} must be {allowed}, as of pixels in 0..1; divide 0..255 by 255")
        used.append(each)
    return used[0], used[1]
