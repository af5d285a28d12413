"""Folders of images: one folder a class, alone or below ``train`` and a held-out folder."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from accelsim.datasets.classlist import same
from accelsim.datasets.dataset import DataError, Int64, by, few
from accelsim.datasets.pictures import picture, suffixes
from accelsim.int8.network import Shape, UInt8

TRAIN: Final = ("train", "training")
HELD_OUT: Final = ("test", "testing", "val", "valid", "validation")
"""Names of held-out folders; the first that is there is used. Capitals do not matter, nor ``set`` behind them."""
IGNORED: Final = frozenset({"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information", "__pycache__"})
"""Left by operating systems and tools, as whatever begins with a dot."""
DARK: Final = 4095
"""Where no value of 16 bits is above this, cameras' 12 or 10 bits are more likely than a world of a sixteenth of the light."""
SIDE: Final = frozenset({".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".ini", ".db", ".log"})
"""Files that lie beside images and are none."""

Part = tuple[UInt8, Int64]


def read(path: Path, shape: Shape, names: tuple[str, ...] | None) -> tuple[Part, Part | None, tuple[str, ...], tuple[str, ...]]:
    """(training part, held-out part if there is one, class names, notes); images uint8 (N, H, W, C), labels (N,).

    ``names`` number the classes; without them they are numbered in the order of the training folders' names.
    Raises DataError naming the folder or file.
    """
    train, held_out, notes = _splits(path)
    folders = _classes(train)
    if names is None:
        names = _in_order(train, folders)
        inner = next(iter(folders.values()))
        within = [entry.name for entry in _visible(inner) if entry.is_dir()]
        if len(names) == 1 and len(within) > 1:
            raise DataError(
                f"{train}: holds one class, {names[0]!r}, with folders {few(within)} in it; "
                f"if those are the classes, give {inner}"
            )
        unknown = "is not among the training classes"
    else:
        names = tuple(map(same, names))
        unknown = f"is not in the class list of {len(names)} names"
    parts: list[Part] = []
    peaks: list[int] = []
    for part in (train,) if held_out is None else (train, held_out):
        for name in folders if part is train else (folders := _classes(part)):
            if name not in names:
                raise DataError(f"{part}: class {name!r} {unknown} ({_near(name, names)})")
        numbered = [(names.index(name), folder) for name, folder in folders.items()]
        images, labels, said, found = _images(sorted(numbered), shape)
        parts.append((images, labels))
        notes += said
        peaks += found
    _lit(path, peaks)
    return parts[0], parts[1] if len(parts) == 2 else None, names, tuple(notes)


def _splits(path: Path) -> tuple[Path, Path | None, list[str]]:
    """(the training folder, the held-out one, notes); the folder itself where its folders are the classes."""
    folders = [entry for entry in _visible(path) if entry.is_dir()]
    if not folders:
        raise DataError(f"{path}: no folders in it; images lie in one folder a class")
    named = [folder for folder in folders if _is_split(folder)]
    # A folder named train that holds images itself is a class of trains.
    splits = [folder for folder in named if any(entry.is_dir() for entry in _visible(folder))]
    if not splits:
        if len(named) == len(folders):
            raise DataError(f"{named[0]}: no folders in it; images lie in one folder a class")
        return path, None, []
    train = [folder for folder in splits if _split(folder) in TRAIN]
    if len(train) != 1:
        found = " and ".join(folder.name for folder in train or splits)
        raise DataError(f"{path}: folders {found}, expected one named train with a folder a class")
    for folder in folders:
        if folder not in named and next(_files(folder, set()), None) is not None:
            raise DataError(
                f"{folder}: lies beside {train[0].name} and is none of {', '.join(HELD_OUT)}; "
                f"move it away, or below {train[0].name}"
            )
    rest = [folder for folder in named if _split(folder) in HELD_OUT]
    usable = sorted((f for f in rest if f in splits), key=lambda folder: HELD_OUT.index(_split(folder)))
    if rest and not usable:
        raise DataError(f"{rest[0]}: no folders in it; held-out images lie in one folder a class as well")
    aside = [str(folder) for folder in named if folder not in (*train, *usable[:1])]
    notes = [f"not used: {', '.join(aside)}; held out is {usable[0]}"] if aside and usable else []
    return train[0], usable[0] if usable else None, notes


def _split(folder: Path) -> str:
    """Which split a folder is by its name: ``Training_Set`` is ``training``."""
    return re.sub(r"[ _-]?set$", "", folder.name.lower())


def _is_split(folder: Path) -> bool:
    return _split(folder) in (*TRAIN, *HELD_OUT)


def _classes(part: Path) -> dict[str, Path]:
    """Class folders by name, in the order of the names. Raises DataError for what lies there and is in no class."""
    found: dict[str, Path] = {}
    for entry in _visible(part):
        if not entry.is_dir():
            if entry.suffix.lower() in suffixes():
                raise DataError(f"{entry}: lies beside the class folders; move it into the folder of its class")
            continue
        inner = [e for e in _visible(entry) if e.is_dir() and _is_split(e) and any(x.is_dir() for x in _visible(e))]
        if inner:
            raise DataError(f"{entry}: holds {inner[0].name}; is that the data set? Give {entry}")
        if same(entry.name) in found:
            raise DataError(f"{entry}: a second folder of the name {same(entry.name)!r}")
        found[same(entry.name)] = entry
    if not found:
        raise DataError(f"{part}: no folders in it; images lie in one folder a class")
    return dict(sorted(found.items()))


def _in_order(part: Path, folders: dict[str, Path]) -> tuple[str, ...]:
    """Class names as torchvision numbers them. Raises DataError where a person would number them otherwise."""
    names = tuple(folders)
    if all(name.isascii() and name.isdigit() for name in names) and list(names) != sorted(names, key=int):
        raise DataError(
            f"{part}: class folders are numbers, in order of text ({few(names)}) they are not in order of value; "
            "give a class list with their names in the network's order"
        )
    return names


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]!r}?" if close else few(names)


def _lit(path: Path, peaks: list[int]) -> None:
    """Raises DataError where 16-bit images that do not say how many bits count would all come out almost black."""
    if peaks and max(peaks) <= DARK:
        raise DataError(
            f"{path}: the largest value in its {len(peaks)} 16-bit images is {max(peaks)} of 65535, as of "
            f"{DARK.bit_length()} or fewer bits, and they do not say how many count: so they are almost black. Convert them "
            "to 8 bits (12 bits: value * 255 // 4095), or say it in each: PNG's sBIT, TIFF's MaxSampleValue (4095, or 65535 "
            "if they are that dark)"
        )


def _images(folders: list[tuple[int, Path]], shape: Shape) -> tuple[UInt8, Int64, list[str], list[int]]:
    """(images, labels, notes, what ``Picture.peak`` says) of the numbered class folders."""
    files: list[tuple[int, Path]] = []
    side: list[Path] = []
    for label, folder in folders:
        found = sorted(_files(folder, set()))
        pictures = [file for file in found if file.suffix.lower() not in SIDE]
        if not pictures:
            raise DataError(f"{folder}: no images in this class folder; remove it, or put its images there")
        files += [(label, file) for file in pictures]
        side += [file for file in found if file.suffix.lower() in SIDE]
    try:
        images = np.empty((len(files), *shape), np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{folders[0][1].parent}: {len(files)} images of {by(shape)} do not fit into memory; give fewer"
        ) from error
    several = []
    peaks = []
    for image, (_, file) in zip(images, files, strict=True):
        image[:], frames, peak = picture(file, shape)
        if frames > 1:
            several.append(file)
        if peak is not None:
            peaks.append(peak)
    notes = []
    if side:
        notes.append(f"{len(side)} files that are no images are not used: {few([str(file) for file in side], 2)}")
    if several:
        notes.append(f"{len(several)} files hold several images, the first is used: {few([str(file) for file in several], 2)}")
    return images, np.array([label for label, _ in files], np.int64), notes, peaks


def _files(folder: Path, above: set[Path]) -> Iterator[Path]:
    """All files below a folder. Raises DataError for a link that leads nowhere or in a circle."""
    real = folder.resolve()
    if real in above:
        raise DataError(f"{folder}: leads back to a folder that it lies in")
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _files(entry, above | {real})
        elif entry.is_file():
            yield entry
        else:
            raise DataError(f"{entry}: neither a file nor a folder, or a link that leads nowhere")


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, without what operating systems leave there."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in IGNORED]
