"""A replay as bytes and back: what one process of the trainer asks of another, and its answer. Safetensors, never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load, save

from accelsim.int8 import storage
from accelsim.int8.network import Activation, Network
from services.trainer.core.loss import Labels, Soft, Targets
from services.trainer.core.replay import Gradients, Replay


class Part(NamedTuple):
    """Some of a batch: the device's input (N, H, W, C), output of each MAC layer by index, and labels."""

    x: Activation
    outputs: dict[int, Activation]
    labels: Labels


def asked(network: Network | None, parts: Mapping[int, Part]) -> bytes:
    """The parts that another process is to replay, by number, on a network, or on the one before where it is None."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    soft: dict[str, tuple[float, float]] = {}
    images: dict[str, tuple[str, float]] = {}
    if network is not None:
        tensors["network"] = np.frombuffer(storage.to_bytes(network), np.uint8)
    for number, part in parts.items():
        tensors[f"{number}/x"] = part.x
        tensors |= {f"{number}/output/{index}": y for index, y in part.outputs.items()}
        labels = part.labels
        if isinstance(labels, Soft):
            soft[str(number)] = labels.temperature, labels.share
            tensors[f"{number}/labels"] = labels.probabilities
            if labels.hard is not None:
                tensors[f"{number}/hard"] = labels.hard
        elif isinstance(labels, Targets):
            images[str(number)] = labels.criterion, labels.span
            tensors[f"{number}/labels"] = labels.images
        else:
            tensors[f"{number}/labels"] = labels
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return bytes(save(whole, metadata={"r2f": json.dumps({"parts": sorted(parts), "soft": soft, "images": images})}))


def what(data: bytes) -> tuple[Network | None, dict[int, Part]]:
    """What ``asked`` made the bytes of."""
    head, tensors = _head(data), load(data)
    network = storage.from_bytes(tensors["network"].tobytes()) if "network" in tensors else None
    parts = {}
    for number in head["parts"]:
        labels: Labels = tensors[f"{number}/labels"]
        if str(number) in head["soft"]:
            temperature, share = head["soft"][str(number)]
            labels = Soft(tensors[f"{number}/labels"], temperature, tensors.get(f"{number}/hard"), share)
        if str(number) in head["images"]:
            labels = Targets(tensors[f"{number}/labels"], *head["images"][str(number)])
        prefix = f"{number}/output/"
        outputs = {int(name.removeprefix(prefix)): y for name, y in tensors.items() if name.startswith(prefix)}
        parts[int(number)] = Part(tensors[f"{number}/x"], outputs, labels)
    return network, parts


def answered(found: Mapping[int, Replay]) -> bytes:
    """What parts came to, by number."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    head = {}
    for number, one in found.items():
        # As a string of hexadecimal digits, a float has all of its bits.
        head[str(number)] = (one.loss.hex(), one.correct, one.norm.hex())
        for index, pair in one.gradients.items():
            for kind, gradient in zip("wb", pair, strict=True):
                tensors[f"{number}/{index}/{kind}"] = np.ascontiguousarray(gradient.numpy())
    return bytes(save(tensors, metadata={"r2f": json.dumps(head)}))


def came(data: bytes) -> dict[int, Replay]:
    """What ``answered`` made the bytes of, with gradients in the order of a replay's: from the last layer to the first."""
    tensors = load(data)
    found = {}
    for number, (loss, correct, norm) in _head(data).items():
        indices = sorted({int(name.split("/")[1]) for name in tensors if name.startswith(f"{number}/")}, reverse=True)
        gradients: Gradients = {}
        for index in indices:
            weight, bias = (torch.from_numpy(tensors[f"{number}/{index}/{kind}"]) for kind in "wb")
            gradients[index] = weight, bias
        found[int(number)] = Replay(float.fromhex(loss), int(correct), float.fromhex(norm), gradients)
    return found


def _head(data: bytes) -> Any:
    """The metadata of a safetensors file: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["r2f"])
