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
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from accelsim import lowering, zoo
from accelsim.accelerators import Simulated
from accelsim.engine import Engine, warm
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Int8, Network, UInt8
from benchmarks.chained_step import chained

BATCH = 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photos(path: Path | None, count: int, side: int) -> UInt8:
    """uint8 images (count, side, side, 3): the file's validation images, else smooth random ones."""
    if path is not None:
        with np.load(path) as data:
            name = next(n for n in ("val_images", "test_images", "train_images") if n in data)
            images: UInt8 = data[name][:count]
        return images
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, side // 8, side // 8, 3)).repeat(8, 1).repeat(8, 2)
    return np.clip(coarse + random.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


def peak_mb(stored: Path, images: Path, ber: float, threads: int) -> float:
    """Peak resident memory in MB (10^6 bytes) of a process that does three chained steps."""
    command = [sys.executable, "-m", "benchmarks.chained_step", str(stored), str(images), str(ber), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def folded(module: nn.Module) -> nn.Module:
    """The float module as one would deploy it: evaluation mode, batch norm folded, channels-last."""
    from torch.fx.experimental.optimization import fuse

    return fuse(module.eval()).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def pytorchfi(module: nn.Module, x: torch.Tensor, flips: int, weight_flips: int) -> Callable[[], object] | str:
    """A pass with that many injections by PyTorchFI, positions drawn beforehand; or why it cannot run."""
    try:
        from pytorchfi.core import fault_injection
    except ImportError as error:
        return f"{error}; pip install --no-deps pytorchfi"
    logging.disable(logging.INFO)  # it logs every injection; nobody would time it like that
    random = np.random.default_rng(0)
    shape = list(x.shape[1:])

    def injector(model: nn.Module) -> Any:
        return fault_injection(model, len(x), input_shape=shape, layer_types=[nn.Conv2d], use_cuda=False)

    probe = injector(module)

    def spread(count: int, sizes: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.sort(random.choice(len(sizes), count, p=np.array(sizes) / sum(sizes)))

    def places(layers: np.ndarray[Any, np.dtype[np.int64]], shapes: list[tuple[int, ...]]) -> list[list[int]]:
        return [[int(random.integers(shapes[i][d])) for i in layers] for d in range(4)]

    weights = [tuple(probe.get_weights_size(i)) for i in range(probe.get_total_layers())]
    outputs = [(len(x), *probe.get_layer_shape(i)[1:]) for i in range(probe.get_total_layers())]
    at_weights = spread(weight_flips, [int(np.prod(w)) for w in weights])
    at_outputs = spread(flips, [int(np.prod(o)) for o in outputs])
    k, c, h, w = places(at_weights, weights)
    batch, *dims = places(at_outputs, outputs)

    @torch.no_grad()
    def run() -> object:
        broken = injector(module).declare_weight_fi(
            layer_num=at_weights.tolist(), k=k, dim1=c, dim2=h, dim3=w, value=[0.5] * weight_flips
        )
        broken = injector(broken).declare_neuron_fi(
            layer_num=at_outputs.tolist(), batch=batch, dim1=dims[0], dim2=dims[1], dim3=dims[2], value=[0.5] * flips
        )
        return broken(x)

    return run


def measure(network: Network, module: nn.Module, images: UInt8, ber: float, rounds: int, fi: bool) -> dict[str, float]:
    """Milliseconds of each row."""
    x = network.quantize_images(images)
    engine = Engine(network)
    faulty = Simulated(Rates.uniform(ber))
    faulty.load(network)
    floats = (torch.tensor(images).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    floats = floats.contiguous(memory_format=torch.channels_last)
    plain = folded(module)
    iteration = 0

    def step(run: Callable[[int], object]) -> Callable[[], object]:
        def fresh() -> object:
            nonlocal iteration
            iteration += 1
            return run(iteration)

        return fresh

    rows: dict[str, Callable[[], object]] = {
        "torch_float32": torch.no_grad()(lambda: plain(floats)),
        "forward": lambda: engine.run(x),
        "faulty": step(lambda i: faulty.run(x, iteration=i)),
        "chained": step(lambda i: chained(faulty, x, i)),
    }
    onnx = onnxruntime_int8(network, x)
    if not isinstance(onnx, str):
        rows["onnxruntime_int8"] = onnx
    else:
        print(f"ONNX Runtime is not measured: {onnx}", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            # The first call of a turn finds the caches as the row before left them; the second is timed.
            for timed in (False, True):
                start = time.perf_counter()
                row()
                if timed:
                    times[name].append((time.perf_counter() - start) * 1e3)
    fastest = {name: min(values) for name, values in times.items()}
    if fi:
        struck = [
            faulty.flips(i, (BATCH, *network.shape_of(layer.inputs[0])), iteration=0, replica=0) for i, layer in network.convs()
        ]
        weight_flips = sum(len(f.weight) for f in struck)
        run = pytorchfi(module, floats.contiguous(), sum(f.count() for f in struck) - weight_flips, weight_flips)
        if isinstance(run, str):
            print(f"PyTorchFI is not measured: {run}", file=sys.stderr)
        else:
            start = time.perf_counter()
            run()
            fastest["pytorchfi"] = (time.perf_counter() - start) * 1e3
    return fastest


def onnxruntime_int8(network: Network, x: Int8) -> Callable[[], object] | str:
    """A pass of the same network by ONNX Runtime's own operators, or why there is none."""
    try:
        import onnxruntime

        from accelsim.accelerators.onnxruntime import network_model
    except ImportError as error:
        return str(error)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = network_model(network, exact=False)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}
    return lambda: session.run(None, feed)


def main(
    network: Annotated[str, typer.Option(help="A network of accelsim.zoo, or package.module:function.")] = "mobilenet_v2",
    weights: Annotated[Path | None, typer.Option(help="safetensors; random weights without.")] = None,
    data: Annotated[Path | None, typer.Option(help="npz with val_images; smooth random images without.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    ber: float = 1e-4,
    rounds: int = 9,
    threads: int = 2,
    fi: Annotated[bool, typer.Option(help="Measure PyTorchFI too; it takes minutes on large networks.")] = True,
) -> None:
    """Time the accelerator against its peers."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = zoo.build(network)
    if weights is not None:
        zoo.load_weights(module, weights)
    side = 32 if "resnet20" in network or "resnet56" in network else 224
    images = photos(data, 64, side)
    lowered = lowering.lower(module, images, MEAN, STD, network)
    warm()
    with tempfile.TemporaryDirectory() as folder:
        stored, batch = Path(folder) / "network.safetensors", Path(folder) / "images.npz"
        storage.save(lowered, stored)
        np.savez(batch, val_images=images[:BATCH])
        peak = peak_mb(stored, batch, ber, threads)
    ms = measure(lowered, module, images[:BATCH], ber, rounds, fi)
    report = {
        "network": network,
        "weights": "random" if weights is None else weights.name,
        "batch": BATCH,
        "threads": threads,
        "ber": ber,
        "path": Engine(lowered).path,
        "forward_vs_torch": ms["forward"] / ms["torch_float32"],
        "faulty_vs_forward": ms["faulty"] / ms["forward"],
        "chained_vs_forward": ms["chained"] / ms["forward"],
        "vs_pytorchfi": ms["pytorchfi"] / ms["faulty"] if "pytorchfi" in ms else None,
        "forward_vs_onnxruntime": ms["forward"] / ms["onnxruntime_int8"] if "onnxruntime_int8" in ms else None,
        "peak_mb": peak,
        "ms": ms,
    }
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    table = Table(title=f"{network}, batch {BATCH}, {threads} threads, BER {ber:g}", title_justify="left")
    for column in ("what", "value", "must", "aim"):
        table.add_column(column)
    for name, must, aim in (
        ("forward_vs_torch", "<= 1.0", "<= 0.5"),
        ("faulty_vs_forward", "<= 1.5", "<= 1.15"),
        ("chained_vs_forward", "<= 3.0", "<= 2.0"),
        ("vs_pytorchfi", ">= 5", ">= 20"),
        ("forward_vs_onnxruntime", "", ""),
        ("peak_mb", "<= 1500", "<= 800"),
    ):
        value = report[name]
        table.add_row(name, "-" if value is None else f"{value:.4g}", must, aim)
    for name, value in ms.items():
        table.add_row(f"{name} ms", f"{value:.4g}", "", "")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
