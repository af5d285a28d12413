"""``r2f export``: a model as a file for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple

from accelsim.export import c_header, program
from accelsim.files import write_whole
from accelsim.int8 import storage
from accelsim.int8.network import Network
from r2f import prepare
from r2f.models.which import Model

Format = Literal["onnx", "qdq", "pytorch", "safetensors", "c-header"]


class _Kind(NamedTuple):
    suffix: str
    made: Callable[[Network], bytes]
    takes: str
    """What goes in and comes out, for a person."""


def _onnx(network: Network) -> bytes:
    _needs_onnx()
    from accelsim.accelerators.onnx_models import pixels_model

    return pixels_model(network)


def _qdq(network: Network) -> bytes:
    _needs_onnx()
    from accelsim.export.qdq import qdq_model

    return qdq_model(network)


def _needs_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise ValueError("ONNX files need the package onnx: pip install 'r2f[onnx]'") from None


KINDS: Final[dict[Format, _Kind]] = {
    "onnx": _Kind(
        ".onnx", _onnx, "images uint8 (N, H, W, C) as they are read -> outputs, the network's integers, and values, float32"
    ),
    "qdq": _Kind(
        ".qdq.onnx", _qdq, "input float32 (N, C, H, W), pixels / 255 normalised {normalised} -> output float32 (N, C, H, W)"
    ),
    "pytorch": _Kind(
        ".pt2", program.to_bytes, "torch.export.load(FILE).module()(images): uint8 (N, H, W, C) -> float32 (N, H, W, C)"
    ),
    "safetensors": _Kind(".safetensors", storage.to_bytes, "R2F's own format: integers as tensors, the graph as JSON beside"),
    "c-header": _Kind(
        ".h", lambda network: c_header.c_header(network).encode(), "{name}_run(pixels, outputs): uint8 (H, W, C) -> integers"
    ),
}


class Exported(NamedTuple):
    """A file that was written."""

    path: Path
    size: int
    takes: str


def export(found: Model, kind: Format, out: Path | None) -> Exported:
    """Writes the model in a format to ``out``, or beside the model under its name with the format's suffix.

    Raises ValueError for a file that is there already, OSError where nothing can be written.
    """
    suffix, made, takes = KINDS[kind]
    path = found.source.with_name(found.source.stem + suffix) if out is None else out
    if path.is_dir():
        path = path / (found.source.stem + suffix)
    if path.exists():
        raise ValueError(f"{path}: is there already; give another name with --out, or remove it")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    body = made(found.network)
    write_whole(path, body)
    normalised = "as in training"
    if found.run is not None:
        prepared = prepare.read(found.run)
        numbers = ("/".join(f"{value:.4g}" for value in values) for values in (prepared.mean, prepared.std))
        normalised = "by mean {} and std {}".format(*numbers)
    words = takes.format(normalised=normalised, name=c_header.identifier(found.network.name)) if "{" in takes else takes
    return Exported(path, len(body), words)
