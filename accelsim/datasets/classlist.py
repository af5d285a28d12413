"""Class lists: the names of a network's classes, in the order of its outputs."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from accelsim.datasets.dataset import DataError, few

_CHECKPOINTS: Final = frozenset({".pth", ".pt", ".ckpt", ".tar", ".bin"})
_KEYS: Final = ("classes", "class_names", "class_to_idx", "idx_to_class", "id2label", "label2id", "categories")
"""Under which people save class names, in JSON files and in checkpoints."""


def class_list(path: str | Path) -> tuple[str, ...]:
    """Name of class k at place k, from a file.

    - text: one name a line;
    - ``.json``: a list of names, names to numbers (``class_to_idx``), or numbers to names (``id2label``,
      ``imagenet_class_index.json``, whose first name is taken), or an object that holds one of these under such a key;
    - a torch checkpoint (``.pth``, ``.pt``, ``.ckpt``, ``.tar``, ``.bin``) with one of these beside its weights.

    Raises DataError that names the file and the line.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in _CHECKPOINTS:
            names = _held(path, _checkpoint(path))
        else:
            text = path.read_text("utf-8-sig")
            names = _held(path, json.loads(text)) if path.suffix.lower() == ".json" else _lines(path, text)
    except OSError as error:
        raise DataError(f"{path}: no class list: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a class list is text in UTF-8, one name a line: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    names = tuple(map(same, names))
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if not name:
            raise DataError(f"{path}: class {number} has an empty name; its numbers would not be the network's")
        if name in first:
            raise DataError(f"{path}: classes {first[name]} and {number} are both named {name!r}")
        first[name] = number
    if not names:
        raise DataError(f"{path}: no class names in it")
    return names


def same(name: str) -> str:
    """One way to write a name: macOS takes accents apart."""
    return unicodedata.normalize("NFC", name.strip())


def _lines(path: Path, text: str) -> Sequence[str]:
    lines = text.rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"{path}: line {number} is empty; each line is a class, in the network's order")
    return lines


def _checkpoint(path: Path) -> object:
    """What a checkpoint holds, nothing executed. Torch is loaded here alone: only this kind of list needs it."""
    import torch

    try:
        return torch.load(path, map_location="meta", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # unpickling what is no checkpoint raises anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: no class list can be read from it: {reason}") from error


def _held(path: Path, held: object) -> Sequence[str]:
    """The names in what a file holds."""
    if isinstance(held, Mapping):
        for key in _KEYS:
            if key in held:
                return _held(path, held[key])
        return _numbered(path, held)
    if isinstance(held, list | tuple) and all(isinstance(name, str) for name in held):
        return held
    raise DataError(f"{path}: expected a list of class names, or names and numbers, found {type(held).__name__}")


def _numbered(path: Path, held: Mapping[Any, Any]) -> Sequence[str]:
    names: dict[int, str] = {}
    for key, value in held.items():
        if isinstance(value, list | tuple) and value:
            value = value[0]
        try:
            number, name = (int(key), value) if isinstance(value, str) else (int(value), key)
        except (TypeError, ValueError):
            raise DataError(
                f"{path}: no class names in it: neither under {', '.join(_KEYS)} nor as names and numbers; "
                f"it holds {few(list(map(str, held)))}"
            ) from None
        if number in names:
            raise DataError(f"{path}: class {number} is both {names[number]!r} and {name!r}")
        names[number] = str(name)
    if sorted(names) != list(range(len(names))):
        missing = next(number for number in range(len(names)) if number not in names)
        raise DataError(f"{path}: class {missing} has no name; numbers must be 0 to {len(names) - 1}")
    return [names[number] for number in range(len(names))]
