"""What a person says about the data, as a struct and as options of a command line."""

from __future__ import annotations

import msgspec

from accelsim.datasets.dataset import DataError, by

DIGITS = "digits"


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which data, and how it is read. Device and server must be given the same classes."""

    source: str = DIGITS
    """``digits``, an npz file, or a folder of images."""
    image_size: tuple[int, int, int] | None = None
    """(H, W, C) that a folder's images are scaled to."""
    mean: tuple[float, ...] | None = None
    """Of each channel, of pixels in 0..1; one number counts for all channels. None takes ``load``'s default, as ``std``."""
    std: tuple[float, ...] | None = None
    classes: str | None = None
    """Path of a class list (``class_list``)."""


def spec_of(
    source: str = DIGITS,
    *,
    image_size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    classes: str | None = None,
) -> Spec:
    """Spec of the options ``--image-size HxWxC``, ``--mean`` and ``--std`` (numbers and commas) and ``--classes FILE``.

    Raises DataError naming the option.
    """
    return Spec(
        source=source,
        image_size=None if image_size is None else _size(image_size),
        mean=None if mean is None else _numbers("--mean", mean),
        std=None if std is None else _numbers("--std", std),
        classes=classes,
    )


def arguments(spec: Spec) -> list[str]:
    """The options that ``spec_of`` reads, and ``--data``: for a command line of another process."""
    given = {
        "--image-size": None if spec.image_size is None else by(spec.image_size),
        "--mean": None if spec.mean is None else ",".join(map(repr, spec.mean)),
        "--std": None if spec.std is None else ",".join(map(repr, spec.std)),
        "--classes": spec.classes,
    }
    # With "=", a value that begins with a dash is still a value.
    return [f"--data={spec.source}", *(f"{option}={value}" for option, value in given.items() if value is not None)]


def _size(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise DataError(f"--image-size {text!r}: expected HxWxC, e.g. 224x224x3")
    height, width, channels = map(int, parts)
    return height, width, channels


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        values = ()
    if not values:
        raise DataError(f"{option} {text!r}: expected a number for each channel, of pixels in 0..1, e.g. 0.485,0.456,0.406")
    return values
