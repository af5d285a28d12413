"""Checkpoints into modules: names as people save them, pruned and folded weights, and how many classes a file has."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from accelsim.zoo.checkpoint import WeightsError, named, read
from accelsim.zoo.mobilenet import MobileNetV2

_PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
"""What wrappers (data-parallel, Lightning, torch.compile) put in front of all names."""
_BETWEEN = re.compile(r"(^|\.)(_orig_mod|module)\.")
"""The same where a part of the module was wrapped."""


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fills the module with a checkpoint file that ``accelsim.zoo.checkpoint.read`` reads.

    Names are the module's own, with or without the prefixes of data-parallel training, Lightning and torch.compile.
    Pruned and weight-normalised tensors become the weights that they stand for. Where a file has no batch norm and its
    convolutions have biases instead, batch norm becomes the identity plus that bias.
    Raises WeightsError, which names missing, unexpected and misshaped tensors; OSError if the file cannot be read.
    """
    fill(module, read(Path(path)), Path(path))


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fills the module with the tensors of a file, as ``load_weights`` does. Raises WeightsError."""
    own = module.state_dict()
    tensors = _unfold(module, renamed(type(module), own, tensors))
    missing = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in tensors if k not in own]
    shared = {k: v for k, v in own.items() if k in tensors}
    misshaped = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(v.shape)}" for k, v in shared.items() if tensors[k].shape != v.shape
    ]
    rounded = [
        f"{k} {str(tensors[k].dtype).removeprefix('torch.')}"
        for k, v in shared.items()
        if v.is_floating_point() and not tensors[k].is_floating_point()
    ]
    infinite = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    problems = [
        f"{what}: {named(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshaped", misshaped),
            ("quantised (give the float weights)", rounded),
            ("not finite", infinite),
        )
        if names
    ]
    if problems:
        raise WeightsError(f"{path} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(dict(tensors), strict=False)


def renamed(kind: type[nn.Module], own: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors by the names that a module of ``kind``, whose names are ``own``, has for them."""
    own = frozenset(own)
    found = {name: value for name, value in tensors.items() if name != "n_averaged"}  # of averaged weights
    while prefix := next((p for p in _PREFIXES if found and _foreign(p, own) and all(n.startswith(p) for n in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    found = {name if name in own else _BETWEEN.sub(r"\1", name): value for name, value in found.items()}
    found = _computed(own, found)
    if issubclass(kind, MobileNetV2):
        found = {_mobilenet_name(name): value for name, value in found.items()}
    return found


def classes_of(build: Callable[[int], nn.Module], tensors: Mapping[str, Tensor]) -> int | None:
    """Number of classes of the network whose tensors a file holds: the size of those that grow with ``build(classes)``.

    None where the file has none of them, so that ``fill`` says what is missing.
    """
    with torch.device("meta"):
        few, more = build(2), build(3)
    small, large = few.state_dict(), more.state_dict()
    found = renamed(type(few), small, tensors)
    head = [name for name, value in small.items() if value.shape != large[name].shape and name in found and found[name].dim()]
    return int(found[head[0]].shape[0]) if head else None


def _foreign(prefix: str, own: frozenset[str]) -> bool:
    return not any(name.startswith(prefix) for name in own)


def _computed(own: frozenset[str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that the file stores as what they are computed from: pruning's and weight norm's."""
    found = dict(tensors)
    for name in tensors:
        if name in own:
            continue
        if name.endswith("_orig") and f"{name[:-5]}_mask" in tensors:
            plain = name[:-5]
            found[plain] = found.pop(name) * found.pop(f"{plain}_mask")
        elif name.endswith("_g") and f"{name[:-2]}_v" in tensors:
            plain = name[:-2]
            found[plain] = _weight_normed(plain, found.pop(f"{plain}_v"), found.pop(name))
        elif (match := re.fullmatch(r"(.*?)parametrizations\.(\w+)\.original0", name)) and f"{name[:-1]}1" in tensors:
            plain = match[1] + match[2]
            found[plain] = _weight_normed(plain, found.pop(f"{name[:-1]}1"), found.pop(name))
    return found


def _weight_normed(name: str, v: Tensor, g: Tensor) -> Tensor:
    """The weight that weight norm makes of its direction ``v`` and its length ``g``, whichever dimension ``g`` is of.

    Raises WeightsError naming the weight where the shapes do not belong together.
    """
    if g.dim() and (g.dim() != v.dim() or any(size not in (1, of) for size, of in zip(g.shape, v.shape, strict=True))):
        raise WeightsError(f"{name}: weight norm's length is {tuple(g.shape)}, its direction {tuple(v.shape)}")
    if g.dim() and g.shape[0] == v.shape[0] and g.numel() == g.shape[0]:
        return torch._weight_norm(v, g, 0)
    over = [d for d in range(v.dim()) if not g.dim() or g.shape[d] == 1]
    length: Tensor = torch.linalg.vector_norm(v, dim=over, keepdim=True)
    return v * (g / length)


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
