"""``python -m benchmarks.deconv``: transposed convolutions on the host's engine, four ways and torch's own, in one run.

The layers that enlarge an image, of public networks, on random int8 images. Rows are taken in turn, several rounds, and each is
the fastest of its rounds, so that a slow spell of the machine hits none of them alone. Ratios are over zero-padding, and over
torch's ``conv_transpose2d`` in float32, channels last, which neither clamps nor rounds to int8 as the engine does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table

from accelsim.engine import Engine, warm
from accelsim.int8 import network as net
from accelsim.int8.network import INPUT, Network, Way
from accelsim.lowering.deconv import Operand, convolutions
from benchmarks.accelerator import fastest
from benchmarks.peers import Run

WAYS: Final[tuple[Way, ...]] = ("zero-padded", "split", "phases", "merged")
TORCH: Final = "torch_float32"
RATIOS: Final = {
    "phases_vs_zero_padded": ("phases", "zero-padded"),
    "merged_vs_zero_padded": ("merged", "zero-padded"),
    "split_vs_zero_padded": ("split", "zero-padded"),
    "phases_vs_torch": ("phases", TORCH),
    "merged_vs_torch": ("merged", TORCH),
}
"""Name of a ratio: the row above and the row below the line. Below one is faster."""


class Layer(NamedTuple):
    """A transposed convolution of stride 2."""

    inputs: int
    outputs: int
    kernel: int
    padding: int
    extra: int
    """Output padding."""
    size: int
    """Height and width of the input."""


LAYERS: Final = {
    "dcgan 5x5, 128 to 64": Layer(128, 64, 5, 2, 1, 16),
    "faces 4x4, 256 to 128": Layer(256, 128, 4, 1, 0, 8),
    "faces 4x4, 64 to 3": Layer(64, 3, 4, 1, 0, 32),
    "style 3x3, 128 to 64": Layer(128, 64, 3, 1, 1, 64),
    "u-net 2x2, 256 to 128": Layer(256, 128, 2, 0, 0, 32),
    "waifu2x 4x4, 256 to 3": Layer(256, 3, 4, 3, 0, 72),
}
"""waifu2x's at half its size."""


def networks(layer: Layer) -> dict[Way, Network]:
    """One-layer int8 networks with random weights, one a way."""
    random, size = np.random.default_rng(0), (layer.size - 1) * 2 - 2 * layer.padding + layer.kernel + layer.extra
    ones = np.ones(layer.outputs, np.float32)
    conv = net.Conv(
        name="up", inputs=(INPUT,), shape=(size, size, layer.outputs), scale=1.0,
        weight=random.integers(-127, 128, (layer.outputs, layer.inputs, layer.kernel, layer.kernel), np.int8),
        bias=random.integers(-999, 1000, layer.outputs, np.int32), weight_scale=ones,
        multiplier=np.full(layer.outputs, 2.0**-13, np.float32), stride=(2, 2), padding=(layer.padding, layer.padding),
    )  # fmt: skip
    shape = (layer.size, layer.size, layer.inputs)
    table = np.zeros((layer.inputs, 256), np.int8)
    return {
        way: Network(
            name=way, input_shape=shape, input_scale=1.0, input_table=table,
            layers=tuple(convolutions(conv, Operand(shape, 1.0, True), 0, way)),
        )
        for way in WAYS
    }  # fmt: skip


def measure(layer: Layer, batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a batch by row. Raises ValueError where the ways differ: their times would be of different things."""
    x = np.random.default_rng(1).integers(-128, 128, (batch, layer.size, layer.size, layer.inputs), np.int8)
    engines = {way: Engine(network) for way, network in networks(layer).items()}
    results = {way: engine.run(x)[-1] for way, engine in engines.items()}
    for way, result in results.items():
        if not np.array_equal(result, results["zero-padded"]):
            raise ValueError(f"{layer}: {way} gives other integers than zero-padding")
    rows: dict[str, Run] = {way: functools.partial(engine.run, x) for way, engine in engines.items()}
    rows[TORCH] = _torch(layer, x)
    return fastest(rows, rounds)


def _torch(layer: Layer, x: net.Int8) -> Run:
    images = torch.from_numpy(x).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(layer.inputs, layer.outputs, layer.kernel, layer.kernel).contiguous(memory_format=torch.channels_last)
    bias = torch.zeros(layer.outputs)
    return torch.no_grad()(lambda: F.conv_transpose2d(images, weight, bias, 2, layer.padding, layer.extra))


def ratios(ms: Mapping[str, float]) -> dict[str, float]:
    """Those of ``RATIOS``."""
    return {name: ms[above] / ms[below] for name, (above, below) in RATIOS.items()}


def table(found: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """A row a layer: milliseconds of each way, and the ratios."""
    grid = Table("layer", *WAYS, TORCH, *(name.replace("_", " ") for name in RATIOS), title=title, title_justify="left")
    for name, ms in found.items():
        times, over = [f"{ms[row]:.2f}" for row in (*WAYS, TORCH)], [f"{value:.2f}" for value in ratios(ms).values()]
        grid.add_row(name, *times, *over)
    return grid


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each row.")] = 9,
    threads: Annotated[int, typer.Option(min=1, help="torch threads.")] = 2,
) -> None:
    """Time transposed convolutions four ways against torch's own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    warm()
    found = {name: measure(layer, batch, rounds) for name, layer in LAYERS.items()}
    path = Engine(next(iter(networks(LAYERS["faces 4x4, 64 to 3"]).values()))).path
    if json_file is not None:
        written = {"batch": batch, "threads": threads, "path": path}
        layers = {name: {"ms": dict(ms), **ratios(ms)} for name, ms in found.items()}
        json_file.write_text(json.dumps({**written, "layers": layers}, indent=2) + "\n")
    Console(width=200).print(table(found, f"batch {batch}, {threads} threads, path {path}, milliseconds and ratios"))


if __name__ == "__main__":
    typer.run(main)
