"""Which of a file's tensors are a network's: under which prefix they lie, and by what names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from accelsim.zoo.checkpoint import WeightsError, named

DEEPEST: Final = 8
"""A network lies at most so many modules deep in what was saved; a file's own names bound the work no further."""
WRAPPED: Final = re.compile(r"(^|\.)(_orig_mod|module)\.")
"""What data-parallel training and torch.compile put in front of a part of a module."""
_COMPUTED: Final = re.compile(r"(?P<plain>.+)_(orig|mask|g|v)|(?P<of>(.*\.)?)parametrizations\.(?P<what>\w+)\.original[01]")
"""Names of what pruning and weight norm compute a weight from."""
_BLOCK: Final = re.compile(r"features\.(\d+)\.(expand|dw|project)\.(weight|bias)")


class Place(NamedTuple):
    """Where a network's tensors lie in a file."""

    prefix: str
    """In front of all names; empty where there is none."""
    inside: tuple[str, ...]
    """The file's names with that prefix, in the file's order."""
    outside: tuple[str, ...]
    """The others."""
    exact: bool
    """Whether under the prefix there is all of the network and nothing else, so that what is outside is another's."""


def place(own: Collection[str], names: Iterable[str], path: Path, *, mobilenet: bool = False) -> Place:
    """The place of a network whose state dict has the names ``own``; where it is nowhere as a whole, the one with most of it.

    Names may be those of wrapped, pruned, weight-normalised and folded modules. Raises WeightsError naming the prefixes where
    several networks of these names lie in the file.
    """
    own, names = frozenset(own), tuple(names)
    below: dict[str, list[str]] = {"": list(names)}
    for name in names:
        parts = name.split(".")
        for depth in range(1, min(len(parts), DEEPEST + 1)):
            below.setdefault(".".join(parts[:depth]) + ".", []).append(name)
    whole: dict[tuple[str, ...], tuple[str, bool]] = {}
    most, nearest = 0, ""
    for prefix, found in below.items():
        meant = {name: _own(name.removeprefix(prefix), own, mobilenet) for name in found}
        hits = {of for of in meant.values() if of is not None}
        if (count := len(own & hits)) > most:
            most, nearest = count, prefix
        if _complete(own, hits):
            # Of two prefixes for the same tensors, one is longer by what WRAPPED takes away, or has another's beside them.
            same, exact = tuple(name for name, of in meant.items() if of is not None), None not in meant.values()
            if not whole.get(same, ("", False))[1]:
                whole[same] = (prefix, exact)
    if len(whole) > 1:
        prefixes = [prefix for prefix, _ in whole.values()]
        raise WeightsError(
            f"{path} holds {len(whole)} networks of these names, under {named(prefix or 'no prefix' for prefix in prefixes)}; "
            "save the one that is meant alone, as "
            f"{{k: v for k, v in state_dict.items() if k.startswith({next(filter(None, prefixes))!r})}}"
        )
    prefix, exact = next(iter(whole.values()), (nearest, False))
    within = frozenset(below[prefix])
    return Place(prefix, tuple(below[prefix]), tuple(name for name in names if name not in within), exact)


def outside_text(path: Path, found: Place) -> str:
    """A line on what was left out of a file."""
    return f"{path}: read what lies under {found.prefix} as the network; left out: {named(found.outside)}"


def mobilenet_name(name: str) -> str:
    """torchvision's name of a tensor in a folded MobileNetV2 file (``features.3.dw.weight``); others stay."""
    if match := _BLOCK.fullmatch(name):
        block, part, what = match.groups()
        first = 0 if block == "1" else 1  # the first block has no expansion
        index = {"expand": "0.0", "dw": f"{first}.0", "project": f"{first + 1}"}[part]
        return f"features.{block}.conv.{index}.{what}"
    name = re.sub(r"^features\.(0|18)\.(weight|bias)$", r"features.\1.0.\2", name)
    return re.sub(r"^classifier\.(weight|bias)$", r"classifier.1.\1", name)


def _own(name: str, own: frozenset[str], mobilenet: bool) -> str | None:
    """The network's tensor that a name of the file stands for, or a folded bias by its name; None where it is none of it."""
    for spelled in dict.fromkeys((name, WRAPPED.sub(r"\1", name))):
        match = _COMPUTED.fullmatch(spelled)
        plain = None if match is None else match["plain"] or match["of"] + match["what"]
        for whole in (spelled, plain):
            if whole is not None:
                whole = mobilenet_name(whole) if mobilenet else whole
                if whole in own or (whole.endswith(".bias") and f"{whole.removesuffix('bias')}weight" in own):
                    return whole
    return None


def _complete(own: frozenset[str], hits: set[str]) -> bool:
    """Whether nothing is missing but batch norms that were folded into the convolutions, which have biases then."""
    missing = {name for name in own - hits if not name.endswith("num_batches_tracked")}
    if hits - own:
        norms = {name.removesuffix("running_mean") for name in own if name.endswith("running_mean")}
        absent = [norm for norm in norms if not any(norm + what in hits for what in ("weight", "bias", "running_mean"))]
        missing -= {norm + what for norm in absent for what in ("weight", "bias", "running_mean", "running_var")}
    return not missing
