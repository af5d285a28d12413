"""A checkpoint file as plain tensors by name: formats, and the wrappings that people save in."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
"""Keys under which training scripts put the state dict."""
_SHOWN = 6


class WeightsError(ValueError):
    """A checkpoint cannot be read or does not fit the module; the text names the file, the keys and what to do."""


def read(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a safetensors file, of a ``*.safetensors.index.json`` and its parts, or of torch's ``.pth``.

    torch's files are read with ``weights_only``: no code of theirs runs. A state dict may lie under one of ``WRAPPERS``.
    Raises WeightsError, which names the file and the keys found; OSError if it cannot be read.
    """
    if path.is_dir():
        files = ", ".join(sorted(p.name for p in path.iterdir())[:_SHOWN])
        raise WeightsError(f"{path} is a folder; give the file in it that holds the weights ({files})")
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".json":
        return _indexed(path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _safetensors(path)
    return _state_dict(path, _torch(path))


def named(keys: Any) -> str:
    """The first few keys as text, and how many more there are."""
    shown = [str(key) for key in keys]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    return tensors


def _indexed(path: Path) -> dict[str, Tensor]:
    """Tensors of all parts that an index names; parts lie beside it."""
    try:
        index = json.loads(path.read_text())
        parts = {str(key): str(part) for key, part in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is not an index of safetensors files: no weight_map from tensors to files in it") from error
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        if Path(part).name != part:
            raise WeightsError(f"{path}: {part}: parts lie in the index's own folder")
        if not (path.parent / part).is_file():
            raise WeightsError(f"{path} names {part}, which is not beside it")
        tensors |= _safetensors(path.parent / part)
    if missing := [key for key in parts if key not in tensors]:
        raise WeightsError(f"{path}: its parts lack {named(missing)}")
    return {key: tensors[key] for key in parts}


def _torch(path: Path) -> Any:
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    numbers = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "b1")]
    # What training scripts put beside the tensors: their arguments, and a best accuracy as a numpy number.
    harmless = [argparse.Namespace, scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *numbers]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file of anything else may make the unpickler raise whatever there is
        text = str(error)
        if "TorchScript" in text:
            raise WeightsError(f"{path} is a TorchScript archive; save the Python module's state_dict() instead") from error
        if unknown := re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) ([\w.]+)", text):
            raise WeightsError(
                f"{path} holds Python objects ({unknown[1]}), a whole module perhaps, and unpickling them would run code "
                "of the file; save module.state_dict() instead"
            ) from error
        first = (text.splitlines() or [type(error).__name__])[0]
        if "weights_only" in first or not re.search("[A-Za-z]{3}", first):  # torch's advice is to run the file's code
            first = "it is none that torch saved, or it is damaged; save module.state_dict() with torch.save or safetensors"
        raise WeightsError(f"{path} is neither safetensors nor a checkpoint of plain tensors: {first}") from error


def _holds_tensors(found: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_tensors(value)) for value in found.values())


def _same(one: Any, other: Any) -> bool:
    """Whether two maps hold the same tensors, whatever else is in them."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return not isinstance(one, Tensor | Mapping) and not isinstance(other, Tensor | Mapping)


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The state dict within what a file holds."""
    while isinstance(loaded, Mapping) and (inside := [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]):
        # Beside the network's there may be maps of settings; where no map holds tensors, what follows says so.
        holding = [key for key in inside if _holds_tensors(loaded[key])] or inside[:1]
        if different := [key for key in holding[1:] if not _same(loaded[holding[0]], loaded[key])]:
            raise WeightsError(
                f"{path} holds several networks, under {named([holding[0], *different])}; save the state dict of one"
            )
        loaded = loaded[holding[0]]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds no state dict (names to tensors) but {type(loaded).__name__}")
    if quantised := [
        key for key, value in loaded.items() if "_packed_params" in str(key) or getattr(value, "is_quantized", False)
    ]:
        raise WeightsError(f"{path} holds a quantised network ({named(quantised)}); give the float weights it was made from")
    others = [key for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others or not loaded:
        raise WeightsError(
            f"{path} holds no state dict (names to tensors): not tensors are {named(others) or 'any, it is empty'}; "
            f"a state dict may lie under {', '.join(WRAPPERS)}"
        )
    return {str(key): value for key, value in loaded.items()}
