"""``python -m benchmarks.accelerator``: the engine against float torch, ONNX Runtime and PyTorchFI, in one run.

Batch 16, two threads. The rows are taken in turn, several rounds, and each is the fastest of its rounds, so that a slow
spell of the machine hits none of them alone. Linux only (peak memory is read from /proc). Peers:

- torch: the float32 module, batch norm folded, channels-last, one forward pass;
- ONNX Runtime: the same int8 network (``accelsim.accelerators.onnxruntime``), outputs of the last layer only;
- PyTorchFI 0.6 (``pip install --no-deps pytorchfi``): its neuron and weight injections into the float module, as many
  as this accelerator flips bits in one faulty pass. Its injections are single values of convolutions, so flips in
  inputs count as neurons.

The chained step runs three replicas of every MAC layer on the actual input and votes (``services.voter``), as the
device does in training mode; draws of faults are included. Peak memory is that of a process of its own that loads the
stored network and does chained steps, its interpreter and libraries included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from accelsim import lowering, zoo
from accelsim.accelerators import Simulated
from accelsim.datasets import IMAGENET_MEAN, IMAGENET_STD, load
from accelsim.engine import Engine, warm
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network, UInt8
from benchmarks.chained_step import chained
from benchmarks.peers import Run, folded, onnxruntime_int8, pytorchfi

BATCH: Final = 16
CALIBRATION: Final = 64
RATIOS: Final = {
    "forward_vs_torch": ("forward", "torch_float32", "<= 1.0", "<= 0.5"),
    "faulty_vs_forward": ("faulty", "forward", "<= 1.5", "<= 1.15"),
    "chained_vs_forward": ("chained", "forward", "<= 3.0", "<= 2.0"),
    "vs_pytorchfi": ("pytorchfi", "faulty", ">= 5", ">= 20"),
    "forward_vs_onnxruntime": ("forward", "onnxruntime_int8", "", ""),
}
"""Name of a ratio: the row above and the row below the line, what it must be, and what it is meant to be."""
PEAK: Final = ("<= 1500", "<= 800")


def photos(path: Path | None, count: int, side: int) -> UInt8:
    """uint8 images (count, side, side, 3): the file's held-out images, else smooth random ones."""
    if path is not None:
        return load(path).test_images[:count]
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, side // 8, side // 8, 3)).repeat(8, 1).repeat(8, 2)
    return np.clip(coarse + random.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


def peak_mb(stored: Path, images: Path, ber: float, threads: int) -> float:
    """Peak resident memory in MB (10^6 bytes) of a process that does three chained steps."""
    command = [sys.executable, "-m", "benchmarks.chained_step", str(stored), str(images), str(ber), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def fastest(rows: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Milliseconds of each row's fastest round; the rows take turns."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            # The first call of a turn finds the caches as the row before left them; the second is timed.
            row()
            start = time.perf_counter()
            row()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: min(values) for name, values in times.items()}


def measure(network: Network, module: nn.Module, images: UInt8, ber: float, rounds: int, fi: bool) -> dict[str, float]:
    """Milliseconds of each row, for a batch of uint8 images (N, H, W, 3). Peers that are not installed are told on stderr."""
    x = network.quantize_images(images)
    engine = Engine(network)
    faulty = Simulated(Rates.uniform(ber))
    faulty.load(network)
    floats = lowering.normalise(images, IMAGENET_MEAN, IMAGENET_STD)
    plain, channels_last = folded(module), floats.contiguous(memory_format=torch.channels_last)
    iteration = 0

    def step(run: Callable[[int], object]) -> Run:
        def fresh() -> object:
            nonlocal iteration
            iteration += 1
            return run(iteration)

        return fresh

    rows: dict[str, Run] = {
        "torch_float32": torch.no_grad()(lambda: plain(channels_last)),
        "forward": lambda: engine.run(x),
        "faulty": step(lambda i: faulty.run(x, iteration=i)),
        "chained": step(lambda i: chained(faulty, x, i)),
    }
    onnx = onnxruntime_int8(network, x)
    if isinstance(onnx, str):
        print(f"ONNX Runtime is not measured: {onnx}", file=sys.stderr)
    else:
        rows["onnxruntime_int8"] = onnx
    found = fastest(rows, rounds)
    if fi:
        struck = [
            faulty.flips(i, (len(x), *network.shape_of(layer.inputs[0])), iteration=0, replica=0)
            for i, layer in network.convs()
        ]
        weight_flips = sum(len(f.weight) for f in struck)
        run = pytorchfi(module, floats, sum(f.count() for f in struck) - weight_flips, weight_flips)
        if isinstance(run, str):
            print(f"PyTorchFI is not measured: {run}", file=sys.stderr)
        else:
            start = time.perf_counter()
            run()
            found["pytorchfi"] = (time.perf_counter() - start) * 1e3
    return found


def ratios(ms: Mapping[str, float]) -> dict[str, float | None]:
    """Those of ``RATIOS``; None where one of their rows was not measured."""
    return {
        name: ms[above] / ms[below] if above in ms and below in ms else None for name, (above, below, _, _) in RATIOS.items()
    }


def table(title: str, found: Mapping[str, float | None], peak: float, ms: Mapping[str, float]) -> Table:
    """Ratios beside what they must be, and the times that they are of."""
    grid = Table("what", "value", "must", "aim", title=title, title_justify="left")
    for name, (_, _, must, aim) in RATIOS.items():
        value = found[name]
        grid.add_row(name, "-" if value is None else f"{value:.4g}", must, aim)
    grid.add_row("peak_mb", f"{peak:.4g}", *PEAK)
    for name, milliseconds in ms.items():
        grid.add_row(f"{name} ms", f"{milliseconds:.4g}", "", "")
    return grid


def main(
    network: Annotated[str, typer.Option(help="A network of accelsim.zoo, or package.module:function.")] = "mobilenet_v2",
    weights: Annotated[Path | None, typer.Option(help="A checkpoint; random weights without.", exists=True)] = None,
    data: Annotated[Path | None, typer.Option(help="npz of RGB images; smooth random ones without.", exists=True)] = None,
    side: Annotated[int, typer.Option(help="Side of random images, a multiple of 8; CIFAR networks take 32.", min=8)] = 224,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    ber: Annotated[float, typer.Option(min=0, max=1, help="Bit error rate.")] = 1e-4,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each row.")] = 9,
    threads: Annotated[int, typer.Option(min=1, help="torch threads.")] = 2,
    fi: Annotated[bool, typer.Option(help="Measure PyTorchFI too; it takes minutes on large networks.")] = True,
) -> None:
    """Time the accelerator against its peers."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        module = zoo.build(network)
        if weights is not None:
            zoo.load_weights(module, weights)
        images = photos(data, CALIBRATION, side)
        lowered = lowering.lower(module, images, IMAGENET_MEAN, IMAGENET_STD, network)
    except ValueError as error:  # of the zoo, the data or the lowering: each says what does not fit
        raise typer.BadParameter(str(error)) from error
    warm()
    with tempfile.TemporaryDirectory() as folder:
        stored, batch = Path(folder) / "network.safetensors", Path(folder) / "images.npz"
        storage.save(lowered, stored)
        np.savez(batch, val_images=images[:BATCH])
        peak = peak_mb(stored, batch, ber, threads)
    ms = measure(lowered, module, images[:BATCH], ber, rounds, fi)
    found = ratios(ms)
    report = {
        "network": network,
        "weights": "random" if weights is None else weights.name,
        "batch": len(images[:BATCH]),
        "threads": threads,
        "ber": ber,
        "path": Engine(lowered).path,
        **found,
        "peak_mb": peak,
        "ms": ms,
    }
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    title = f"{network}, batch {report['batch']}, {threads} threads, BER {ber:g}"
    Console().print(table(title, found, peak, ms))


if __name__ == "__main__":
    typer.run(main)
