"""Checkpoints: all that the trainer needs to go on as if it had never stopped, in one file, written atomically."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from accelsim.files import write_whole
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.int8.parameters import Parameters
from services.trainer.core.objective import truth_shape
from services.trainer.core.rate import Seen
from services.trainer.core.selection import Candidate, Tried

FILE = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
KINDS = ("master", "velocity", "average")
"""Of the parameters that a checkpoint holds."""
SQUARES = "square"
"""What it holds beside them under Adam."""
VERSION = 2


class Header(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The JSON half of a checkpoint."""

    v: int = VERSION
    iteration: int
    """Iterations finished: the next one has this number."""
    version: int
    """Of the network last deployed."""
    config: str
    """Digest of the run's settings; a checkpoint is of no use to another run."""
    seen: Seen
    """What the learning rate follows from."""
    candidates: list[Candidate] | None
    """What was tried on the selection samples; None before anything was."""
    best: str = ""
    """Name of the best of them."""
    sha256: str = ""
    """Of this header without it, and of the tensors by name."""


class Checkpoint(NamedTuple):
    """The trainer's whole state between two updates."""

    iteration: int
    version: int
    config: str
    parameters: Parameters
    velocity: Parameters
    average: Parameters
    """Running average of the parameters."""
    squares: Parameters
    """Running average of the gradients' squares, under Adam; empty without."""
    network: Network
    seen: Seen
    tried: Tried | None


class CheckpointError(ValueError):
    """The file is not a checkpoint of this run; the message names it and says why."""


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes the checkpoint into the folder and keeps the one before it; returns its path.

    A crash at any moment leaves at least one whole checkpoint. Raises OSError if the disk refuses.
    """
    tensors = _tensors(checkpoint)
    header = Header(
        iteration=checkpoint.iteration,
        version=checkpoint.version,
        config=checkpoint.config,
        seen=checkpoint.seen,
        candidates=None if checkpoint.tried is None else checkpoint.tried.candidates,
        best="" if checkpoint.tried is None else checkpoint.tried.best_name,
    )
    header.sha256 = _digest(header, tensors)
    path = folder / FILE
    body = save(tensors, metadata={"r2f": msgspec.json.encode(header).decode()})
    write_whole(path, body, keep=folder / PREVIOUS)
    return path


def read(path: Path, *, config: str | None = None) -> Checkpoint:
    """The checkpoint in a file, validated: digest, names, dtypes and shapes against its own network.

    ``config``, where given, must be the digest of the settings that it was written under.
    Raises CheckpointError if it is damaged or of another run, FileNotFoundError if there is none.
    """
    data = path.read_bytes()
    try:
        header = _header(data)
        tensors = load(data)
    except (SafetensorError, msgspec.MsgspecError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error
    if header.v != VERSION:
        raise CheckpointError(f"{path}: checkpoint of version {header.v}, this program reads version {VERSION}")
    if _digest(header, tensors) != header.sha256:
        raise CheckpointError(f"{path}: its content does not have the digest that was written with it")
    if config is not None and header.config != config:
        raise CheckpointError(
            f"{path}: written under settings {header.config[:12]}, this run has {config[:12]}; "
            "resume with the same settings or start a new run"
        )
    network = _network(path, "network", tensors)
    parameters, velocity, average = (_parameters(path, kind, network, tensors) for kind in KINDS)
    adaptive = any(name.startswith(f"{SQUARES}.") for name in tensors)
    squares = _parameters(path, SQUARES, network, tensors) if adaptive else {}
    tried = None if header.candidates is None else _tried(path, header.candidates, header.best, tensors)
    if tensors:
        raise CheckpointError(f"{path}: unknown tensors {sorted(tensors)[:3]}")
    return Checkpoint(
        header.iteration, header.version, header.config, parameters, velocity, average, squares, network, header.seen, tried
    )


def latest(folder: Path, *, config: str | None = None) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint of the folder that can be read, and why newer ones, if any, were passed over.

    Raises CheckpointError if there is none.
    """
    refused: list[str] = []
    for name in (FILE, PREVIOUS):
        try:
            return read(folder / name, config=config), refused
        except FileNotFoundError:
            refused.append(f"{folder / name}: no such file")
        except CheckpointError as error:
            refused.append(str(error))
    raise CheckpointError("no checkpoint to resume from: " + "; ".join(refused))


def _tensors(checkpoint: Checkpoint) -> dict[str, npt.NDArray[Any]]:
    tensors: dict[str, npt.NDArray[Any]] = {"network": np.frombuffer(storage.to_bytes(checkpoint.network), np.uint8)}
    if checkpoint.tried is not None:
        tensors["best"] = np.frombuffer(storage.to_bytes(checkpoint.tried.best), np.uint8)
        tensors["agreement.before"], tensors["agreement.best"] = checkpoint.tried.before, checkpoint.tried.agreement
        tensors["truth"] = checkpoint.tried.truth
    kept = (checkpoint.parameters, checkpoint.velocity, checkpoint.average, checkpoint.squares)
    for kind, parameters in zip((*KINDS, SQUARES), kept, strict=True):
        for index, pair in parameters.items():
            for what, array in zip(("weight", "bias"), pair, strict=True):
                tensors[f"{kind}.{index}.{what}"] = array
    return tensors


def _network(path: Path, name: str, tensors: dict[str, npt.NDArray[Any]]) -> Network:
    """Takes a network out of ``tensors``."""
    try:
        return storage.from_bytes(tensors.pop(name).tobytes())
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its {name} cannot be read: {error}") from error


def _tried(path: Path, candidates: list[Candidate], best: str, tensors: dict[str, npt.NDArray[Any]]) -> Tried:
    """Takes the best candidate and the answers out of ``tensors``."""
    network = _network(path, "best", tensors)
    truth, before, after = (tensors.pop(name, None) for name in ("truth", "agreement.before", "agreement.best"))
    if truth is None or before is None or after is None:
        raise CheckpointError(f"{path}: what was found on the selection samples is missing")
    if not truth.dtype == before.dtype == after.dtype == np.float32:
        raise CheckpointError(f"{path}: truth and agreement are {truth.dtype}, {before.dtype}, {after.dtype}, expected float32")
    if before.ndim != 2 or before.shape != after.shape or truth.shape != (before.shape[1], *truth_shape(network)):
        raise CheckpointError(f"{path}: truth {truth.shape} and agreement {before.shape}, {after.shape} do not fit one another")
    return Tried(candidates, truth, before, network, best, after)


def _parameters(path: Path, kind: str, network: Network, tensors: dict[str, npt.NDArray[Any]]) -> Parameters:
    """Takes one weight and one bias a MAC layer out of ``tensors``."""
    found: Parameters = {}
    for index, layer in network.convs():
        pair = []
        for what, shape in (("weight", layer.weight.shape), ("bias", layer.bias.shape)):
            name = f"{kind}.{index}.{what}"
            if name not in tensors:
                raise CheckpointError(f"{path}: tensor {name} is missing")
            array = tensors.pop(name)
            if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
                raise CheckpointError(
                    f"{path}: tensor {name} is {array.dtype} of shape {array.shape}, expected finite float32 of shape {shape}"
                )
            pair.append(array)
        found[index] = (pair[0], pair[1])
    return found


def _header(data: bytes) -> Header:
    """The metadata of a safetensors file: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        raise ValueError(f"header of {length} bytes in a file of {len(data)}")
    return msgspec.json.decode(json.loads(data[8 : 8 + length])["__metadata__"]["r2f"], type=Header)


def _digest(header: Header, tensors: dict[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(header, sha256="")))
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
