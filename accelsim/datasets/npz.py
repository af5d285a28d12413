"""npz files with ``train_images``, ``train_labels`` and the same of a held-out part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from accelsim.datasets.dataset import DataError, Int64, by, few
from accelsim.datasets.made import LIMIT, Made, quantised
from accelsim.int8.network import Shape, UInt8

HELD_OUT: Final = ("test", "val", "valid", "validation")
"""Names of held-out parts; the first that is there is used."""
_CHANNELS: Final = (1, 3, 4)
_LARGEST: Final = 1 << 31

Part = tuple[UInt8, Int64]


def read(path: Path, shape: Shape | None) -> tuple[Part, Part | None, tuple[str, ...]]:
    """(training part, held-out part if there is one, notes); images uint8 (N, H, W, C), labels (N,).

    ``shape`` is what the network takes, where that is known: a set of that shape is right whatever it looks like.
    Raises DataError naming the file, the array and what to do.
    """
    try:
        # Opened here, not by NumPy: it leaves the file open when it is not a zip file.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            held_out = [name for name in HELD_OUT if f"{name}_images" in file]
            train = _part(path, file, "train", shape)
            test = _part(path, file, held_out[0], shape) if held_out else None
            used = {f"{name}_{kind}" for name in ("train", *held_out[:1]) for kind in ("images", "labels")}
            aside = sorted(set(file) - used)
    except DataError:
        raise
    except Exception as error:  # what NumPy's, zip's and zlib's readers raise on a torn file is not one kind
        raise _unreadable(path, error) from error
    if test is not None and train[0].shape[1:] != test[0].shape[1:]:
        sizes = by(train[0].shape[1:]), by(test[0].shape[1:])
        raise DataError(f"{path}: train_images are {sizes[0]}, {held_out[0]}_images are {sizes[1]}")
    return train, test, (f"{path}: not used: {', '.join(aside)}",) if aside else ()


class Paired(NamedTuple):
    """What a file has in place of classes."""

    made: Made
    notes: tuple[str, ...]


def targets(path: Path, shape: Shape | None) -> Paired | None:
    """The images of a file with ``train_targets``, or with ``latents``; None where it has neither.

    Targets are uint8 images (N, H, W, C) of any size, or masks (N, H, W) of class numbers 0 to 255, and a held-out part has
    them too. Latents are float (N, Z), or int8 (N, Z) in steps of 3 / 127; the last fifth is held out (``made.quantised``).
    Without a held-out part every fourth image is one. Raises DataError naming the file, the array and what to do.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if "latents" not in file and "train_targets" not in file:
                return None
            held_out = next((name for name in HELD_OUT if f"{name}_images" in file), None)
            wanted = {"latents"} if "latents" in file else {"train_images", "train_targets"}
            if held_out is not None and "latents" not in file:
                wanted |= {f"{held_out}_images", f"{held_out}_targets"}
            missing = sorted(wanted - set(file))
            if missing:
                raise DataError(f"{path}: array {missing[0]} is missing; it holds {', '.join(sorted(file))}")
            arrays = {name: file[name] for name in wanted}
            aside = sorted(set(file) - wanted)
    except DataError:
        raise
    except Exception as error:  # as in ``read``
        raise _unreadable(path, error) from error
    notes = (f"{path}: not used: {', '.join(aside)}",) if aside else ()
    if "latents" in arrays:
        return Paired(_latents(f"{path}: latents", arrays["latents"]), notes)
    images, wanted_images = _pair(path, arrays, "train", shape)
    if held_out is None:
        if len(images) < 4:
            raise DataError(f"{path}: {len(images)} images are too few to hold some out; give test_images and test_targets")
        out = np.arange(len(images)) % 4 == 3
        return Paired(Made(images[~out], wanted_images[~out], images[out], wanted_images[out]), notes)
    others, wanted_others = _pair(path, arrays, held_out, shape)
    for what, a, b in (("images", images, others), ("targets", wanted_images, wanted_others)):
        if a.shape[1:] != b.shape[1:]:
            raise DataError(f"{path}: train_{what} are {by(a.shape[1:])}, {held_out}_{what} are {by(b.shape[1:])}")
    return Paired(Made(images, wanted_images, others, wanted_others), notes)


def _pair(path: Path, arrays: Mapping[str, npt.NDArray[Any]], part: str, shape: Shape | None) -> tuple[UInt8, UInt8]:
    images = _images(f"{path}: {part}_images", arrays[f"{part}_images"], shape)
    where, wanted = f"{path}: {part}_targets", arrays[f"{part}_targets"]
    what = f"{where} is {wanted.dtype} of shape {wanted.shape}, expected {len(images)} uint8 images or masks (N, H, W)"
    if wanted.ndim not in (3, 4) or len(wanted) != len(images) or 0 in wanted.shape:
        raise DataError(what)
    if wanted.ndim == 4:
        return images, _images(where, wanted, None)
    if wanted.dtype.kind not in "iu":
        raise DataError(f"{what}; masks are integers, the class of each pixel")
    if wanted.min() < 0 or wanted.max() > 255:
        raise DataError(
            f"{where} holds {wanted.min()} to {wanted.max()}; classes are 0 to 255. Give ignored pixels a class of their own"
        )
    return images, np.ascontiguousarray(wanted.astype(np.uint8))


def _latents(where: str, vectors: npt.NDArray[Any]) -> Made:
    what = f"{where} is {vectors.dtype} of shape {vectors.shape}, expected floats or int8 of shape (N, Z)"
    if vectors.ndim != 2 or 0 in vectors.shape or not (vectors.dtype.kind == "f" or vectors.dtype == np.int8):
        raise DataError(what)
    if len(vectors) < 8:
        raise DataError(f"{where}: {len(vectors)} vectors are too few; give 8 or more")
    if vectors.dtype == np.int8:
        vectors = vectors * (LIMIT / 127)
    if not np.isfinite(vectors).all():
        raise DataError(f"{where} holds numbers that are not finite")
    if np.abs(vectors).max() > 2 * LIMIT:
        raise DataError(
            f"{where} reaches {np.abs(vectors).max():g}; numbers are cut off at {LIMIT:g}, so scale them to a deviation of 1"
        )
    pixels = quantised(vectors)
    held = max(1, len(pixels) // 5)
    return Made(pixels[:-held], None, pixels[-held:], None)


def _part(path: Path, file: Mapping[str, Any], part: str, shape: Shape | None) -> Part:
    for key in (f"{part}_images", f"{part}_labels"):
        if key not in file:
            raise DataError(f"{path}: array {key} is missing; it holds {', '.join(sorted(file)) or 'nothing'}")
    images = _images(f"{path}: {part}_images", file[f"{part}_images"], shape)
    return images, _labels(f"{path}: {part}_labels", file[f"{part}_labels"], len(images))


def _images(where: str, images: npt.NDArray[Any], shape: Shape | None) -> UInt8:
    what = f"{where} is {images.dtype} of shape {images.shape}, expected uint8 of shape (N, H, W, C)"
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(what)
    if images.dtype != np.uint8:
        raise DataError(f"{what}; {_as_uint8(images)}")
    if images.ndim == 3:
        images = images[..., None]
    height, width, channels = images.shape[1:]
    planar = height in _CHANNELS and channels not in (*_CHANNELS, 2) and (height > 1 or width == channels)
    if planar and images.shape[1:] != shape:
        raise DataError(f"{what}; this looks like (N, C, H, W): images.transpose(0, 2, 3, 1)")
    return np.ascontiguousarray(images)


def _as_uint8(images: npt.NDArray[Any]) -> str:
    """What to do with images of another type."""
    if images.dtype.kind == "b":
        return "make it (images * 255).astype(np.uint8)"
    if images.dtype.kind not in "iuf":
        return "pixels are numbers 0 to 255"
    low, high = float(images.min()), float(images.max())
    if low < 0 or not np.isfinite([low, high]).all():
        return f"its values are {low:g} to {high:g}: give the pixels as they were before they were normalised, 0 to 255"
    if images.dtype.kind == "f" and high <= 1:
        return "its values are 0 to 1: make it (images * 255).round().astype(np.uint8)"
    if high <= 255 and images.dtype != np.uint16:
        return "its values are 0 to 255: make it images.round().astype(np.uint8)"
    if high <= 65535:
        return "for 16-bit pixels make it (images / 257).round().astype(np.uint8)"
    return f"its values are {low:g} to {high:g}: scale them to 0..255"


def _labels(where: str, labels: npt.NDArray[Any], count: int) -> Int64:
    """(N,) of class numbers, of one-hot rows, or of a column."""
    what = f"{where} is {labels.dtype} of shape {labels.shape}, expected class numbers of shape ({count},)"
    if labels.dtype.kind in "US":
        raise DataError(f"{what}; for names, np.unique(names, return_inverse=True) gives names and numbers")
    if labels.dtype.kind not in "biuf":
        raise DataError(what)
    if labels.ndim == 2 and labels.shape[0] == count and labels.shape[1] > 1:
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise DataError(f"{what}, or one-hot with a single 1 in each row, the rest 0")
        numbers: Int64 = labels.argmax(axis=1).astype(np.int64)
        return numbers
    if labels.shape not in ((count,), (count, 1)):
        raise DataError(what)
    flat = labels.reshape(-1)
    if flat.dtype.kind == "f" and not (np.isfinite(flat).all() and (flat == np.rint(flat)).all()):
        wrong = flat[~(np.isfinite(flat) & (flat == np.rint(flat)))]
        raise DataError(f"{what}; it holds {few([f'{value:g}' for value in wrong])}")
    if flat.min() < 0:
        raise DataError(f"{where} holds {flat.min():g}; classes count from 0")
    if flat.max() >= _LARGEST:
        raise DataError(f"{where} holds {flat.max():g}; classes count from 0 and there are fewer")
    return flat.astype(np.int64)


def _unreadable(path: Path, error: Exception) -> DataError:
    """What to say of a file that is no npz. NumPy takes what it does not know for a pickle, and advises to load that."""
    what = str(error)
    if "pickle" in what:
        what = "it is none, or holds Python objects; numpy.savez writes one, of arrays such as train_images and train_labels"
    return DataError(f"{path}: cannot be read as npz: {what}")
