"""Checkpoints into modules: official ones, and ones whose batch norm was folded into the convolutions."""

from __future__ import annotations

import itertools
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from accelsim.zoo.mobilenet import MobileNetV2


class WeightsError(ValueError):
    """A checkpoint does not fit the module; the text names the tensors."""


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fills the module with a checkpoint: safetensors, or torch's .pth read with ``weights_only``.

    Names are the module's own, with or without ``module.`` in front (data-parallel training). Where a file has no
    batch norm and its convolutions have biases instead, batch norm becomes the identity plus that bias.
    Raises WeightsError, which names missing, unexpected and misshaped tensors; OSError if the file cannot be read.
    """
    tensors = _strip(_read(Path(path)))
    if isinstance(module, MobileNetV2):
        tensors = {_mobilenet_name(name): value for name, value in tensors.items()}
    tensors = _unfold(module, tensors)
    own = module.state_dict()
    missing = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in tensors if k not in own]
    misshaped = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(v.shape)}"
        for k, v in own.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    problems = [
        f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshaped", misshaped))
        if names
    ]
    infinite = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if infinite:
        problems.append(f"not finite: {', '.join(infinite[:4])}")
    if problems:
        raise WeightsError(f"{path} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(tensors, strict=False)


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(path.read_bytes())
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{path} is not a safetensors file: {error}") from error
        return tensors
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path} is neither safetensors nor a checkpoint of plain tensors: {_first_line(error)}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"{path} holds no state dict (names to tensors)")
    return loaded


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _strip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "module."
    if tensors and all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): value for name, value in tensors.items()}
    return dict(tensors)


_BLOCK = re.compile(r"features\.(\d+)\.(expand|dw|project)\.(weight|bias)")


def _mobilenet_name(name: str) -> str:
    """torchvision's name of a tensor in a folded MobileNetV2 file (``features.3.dw.weight``); others stay."""
    if match := _BLOCK.fullmatch(name):
        block, part, what = match.groups()
        first = 0 if block == "1" else 1  # the first block has no expansion
        place = {"expand": "0.0", "dw": f"{first}.0", "project": f"{first + 1}"}[part]
        return f"features.{block}.conv.{place}.{what}"
    name = re.sub(r"^features\.(0|18)\.(weight|bias)$", r"features.\1.0.\2", name)
    return re.sub(r"^classifier\.(weight|bias)$", r"classifier.1.\1", name)


def _unfold(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives each batch norm that the file lacks the identity, and the bias of the convolution in front of it."""
    modules = list(module.named_modules())
    leaves = [(name, m) for name, m in modules if not list(m.children())]
    for (conv_name, conv), (norm_name, norm) in itertools.pairwise(leaves):
        folded = (
            isinstance(conv, nn.Conv2d)
            and conv.bias is None
            and isinstance(norm, nn.BatchNorm2d)
            and f"{conv_name}.bias" in tensors
            and not any(key.startswith(f"{norm_name}.") for key in tensors)
        )
        if folded and isinstance(norm, nn.BatchNorm2d):
            bias = tensors.pop(f"{conv_name}.bias")
            tensors[f"{norm_name}.weight"] = torch.ones_like(bias)
            tensors[f"{norm_name}.bias"] = bias
            tensors[f"{norm_name}.running_mean"] = torch.zeros_like(bias)
            tensors[f"{norm_name}.running_var"] = torch.full_like(bias, 1.0 - norm.eps)
    return tensors
