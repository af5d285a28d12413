"""Checkpoints into modules: names as people save them, pruned and folded weights, and how many classes a file has."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from accelsim.zoo.checkpoint import WeightsError, named, read
from accelsim.zoo.mobilenet import MobileNetV2
from accelsim.zoo.names import WRAPPED, Place, mobilenet_name, outside_text, place


def load_weights(module: nn.Module, path: str | os.PathLike[str], *, say: Callable[[str], None] = warnings.warn) -> None:
    """Fills the module with a checkpoint file that ``accelsim.zoo.checkpoint.read`` reads.

    Names are the module's own, or those under any one prefix that has all of them and nothing else (data-parallel training,
    Lightning and torch.compile put such in front): then ``say`` is told what lies outside of it and is left out.
    Pruned and weight-normalised tensors become the weights that they stand for. Where a file has no batch norm and its
    convolutions have biases instead, batch norm becomes the identity plus that bias.
    Raises WeightsError, which names missing, unexpected and misshaped tensors, or the prefixes where there are several; OSError
    if the file cannot be read.
    """
    fill(module, read(Path(path)), Path(path), say)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, say: Callable[[str], None]) -> None:
    """Fills the module with the tensors of a file, as ``load_weights`` does. Raises WeightsError."""
    own = module.state_dict()
    where, found = renamed(type(module), own, tensors, path)
    tensors = _unfold(module, found)
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
            ("outside of it", () if where.exact else where.outside),
            ("misshaped", misshaped),
            ("quantised (give the float weights)", rounded),
            ("not finite", infinite),
        )
        if names
    ]
    if problems:
        under = f" under {where.prefix}" if where.prefix else ""
        extra = unexpected and len(problems) == 1
        what_to_do = "; leave out of the file what is not the network's" if extra else ""
        raise WeightsError(f"{path} does not fit {type(module).__name__}{under}: {'; '.join(problems)}{what_to_do}")
    module.load_state_dict(dict(tensors), strict=False)
    if where.outside:
        say(outside_text(path, where))


def renamed(
    kind: type[nn.Module], own: Iterable[str], tensors: Mapping[str, Tensor], path: Path
) -> tuple[Place, dict[str, Tensor]]:
    """Where the file has a module of ``kind``, and its tensors by the names ``own`` that the module has for them."""
    own, mobilenet = frozenset(own), issubclass(kind, MobileNetV2)
    counted = [name for name in tensors if name != "n_averaged"]  # of averaged weights
    where = place(own, counted, path, mobilenet=mobilenet)
    found = {name.removeprefix(where.prefix): tensors[name] for name in where.inside}
    found = {name if name in own else WRAPPED.sub(r"\1", name): value for name, value in found.items()}
    if len(found) < len(where.inside):
        twice = [name for name in where.inside if WRAPPED.sub(r"\1", name) in where.inside and WRAPPED.search(name)]
        raise WeightsError(f"{path} has tensors twice, wrapped and not: {named(twice)}; save the module without its wrapper")
    found = _computed(own, found)
    if mobilenet:
        found = {mobilenet_name(name): value for name, value in found.items()}
    return where, found


def classes_of(build: Callable[[int], nn.Module], tensors: Mapping[str, Tensor], path: Path) -> int | None:
    """Number of classes of the network whose tensors a file holds: the size of those that grow with ``build(classes)``.

    None where the file has none of them, so that ``fill`` says what is missing. Raises WeightsError as ``place`` does.
    """
    with torch.device("meta"):
        few, more = build(2), build(3)
    small, large = few.state_dict(), more.state_dict()
    _, found = renamed(type(few), small, tensors, path)
    head = [name for name, value in small.items() if value.shape != large[name].shape and name in found and found[name].dim()]
    return int(found[head[0]].shape[0]) if head else None


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
