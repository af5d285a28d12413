"""The server's part of an iteration against plain training of the float network: ``python -m benchmarks.server --help``.

The server rebuilds what the device computed (predict, decode, check), replays the backward pass, steps the optimiser,
quantises and codes the model's update. Plain torch runs the float network forward and backward on the same batch, without
an optimiser. Both sides take turns in one process, so that a slow spell of the machine hits both; each ratio is of one
round, and what is reported is the median of the rounds.
"""

from __future__ import annotations

import json
import statistics
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
from accelsim.datasets import IMAGENET_MEAN, IMAGENET_STD
from accelsim.engine import Engine, warm
from accelsim.faults import Rates
from accelsim.int8.network import Activation, Network, UInt8
from accelsim.int8.parameters import Parameters, quantize
from benchmarks.accelerator import CALIBRATION, photos
from benchmarks.peers import folded
from experiments.common import chain
from experiments.common.iteration import CLIP, RATE, SGD, midway
from services import memory
from services.codec.core import model
from services.codec.core.rebuild import Rebuild, Wrong
from services.codec.core.sent import SentLayer
from services.scheme import Scheme
from services.trainer.core import optimiser
from services.trainer.core.replay import replay

STAGES: Final = ("decode", "replay", "optimiser", "quantise", "delta")
"""Of the server, in order."""
MUST: Final = 1.0
AIM: Final = 0.8
"""Of ``server_vs_torch``."""

Labels = np.ndarray[tuple[int], np.dtype[np.int64]]


class Server:
    """The server in the middle of a run: one batch that the device ran is on the link, and ``step`` can be repeated."""

    def __init__(self, network: Network, images: UInt8, labels: Labels, ber: float) -> None:
        """``images`` (N, H, W, C) and ``labels`` (N,) are the batch; faults strike it at ``ber``."""
        self.parameters = midway(network)
        self.network = quantize(network, self.parameters)
        self.engine = Engine(self.network)
        self.images, self.labels = images, labels
        device = Simulated(Rates.uniform(ber), 0)
        device.load(self.network)
        batch = chain.chained(device, self.engine, self.network.quantize_images(images), 0)
        self._sent = [SentLayer(sent.index, sent.digest, sent.body) for sent in batch.layers]
        self.trained: Parameters = {index: (w.copy(), b.copy()) for index, (w, b) in self.parameters.items()}
        self._velocity = optimiser.zeros_like(self.parameters)

    def step(self) -> dict[str, float]:
        """Seconds of each of ``STAGES``. Every step starts from the same parameters."""
        for index, (weight, bias) in self.parameters.items():
            np.copyto(self.trained[index][0], weight)
            np.copyto(self.trained[index][1], bias)
            for velocity in self._velocity[index]:
                velocity.fill(0)
        times = [time.perf_counter()]
        outputs = self._decode()
        times.append(time.perf_counter())
        x = self.network.quantize_images(self.images)
        found = replay(self.network, x, outputs, self.labels, self.engine.fault_free)
        times.append(time.perf_counter())
        optimiser.step(self.trained, self._velocity, found.gradients, SGD, RATE, CLIP)
        times.append(time.perf_counter())
        new = quantize(self.network, self.trained)
        times.append(time.perf_counter())
        model.encode(self.network, new)
        model.digest(new)
        times.append(time.perf_counter())
        return dict(zip(STAGES, np.diff(times).tolist(), strict=True))

    def _decode(self) -> dict[int, Activation]:
        """Outputs of the MAC layers. A layer that a repair would mend, which is rare, stays as it came."""
        rebuild = Rebuild(self.network, self.engine, Scheme(exact=False))
        rebuild.start(self.images)
        rebuild.take(0, self._sent)
        outputs = {}
        while (found := rebuild.next()) is not None:
            if isinstance(found, Wrong):
                raise RuntimeError("a pass without repairs asks for one")
            outputs[found.index] = found.actual
        return outputs


def plain(module: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """A forward and backward pass of a float module; gradients of all parameters are left in their ``grad``."""

    def step() -> None:
        module.zero_grad()
        nn.functional.cross_entropy(module(x), labels).backward()  # type: ignore[no-untyped-call]

    return step


def measure(
    server: Server, peers: Mapping[str, Callable[[], None]], rounds: int
) -> tuple[list[dict[str, float]], dict[str, list[float]]]:
    """Seconds of each round: of the server's stages, and of each peer. The first round, which warms all up, is left out."""
    stages: list[dict[str, float]] = []
    others: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds + 1):
        stages.append(server.step())
        for name, run in peers.items():
            start = time.perf_counter()
            run()
            others[name].append(time.perf_counter() - start)
    return stages[1:], {name: seconds[1:] for name, seconds in others.items()}


def report(stages: list[dict[str, float]], others: Mapping[str, list[float]]) -> dict[str, object]:
    """Medians: the ratios of each round's server to that round's peer, and milliseconds."""
    totals = [sum(row.values()) for row in stages]
    ratios = {
        name: statistics.median(mine / theirs for mine, theirs in zip(totals, seconds, strict=True))
        for name, seconds in others.items()
    }
    ms = {stage: 1e3 * statistics.median(row[stage] for row in stages) for stage in STAGES}
    ms |= {"server": 1e3 * statistics.median(totals)}
    ms |= {name: 1e3 * statistics.median(seconds) for name, seconds in others.items()}
    return {**{f"server_vs_{name}": ratio for name, ratio in ratios.items()}, "ms": ms}


def main(
    network: Annotated[str, typer.Option(help="A network of accelsim.zoo, or package.module:function.")] = "mobilenet_v2",
    weights: Annotated[Path | None, typer.Option(help="A checkpoint; random weights without.", exists=True)] = None,
    batch: Annotated[int, typer.Option(help="Images.", min=1)] = 16,
    data: Annotated[Path | None, typer.Option(help="npz of RGB images; smooth random ones without.", exists=True)] = None,
    side: Annotated[int, typer.Option(help="Side of random images, a multiple of 8; CIFAR networks take 32.", min=8)] = 224,
    ber: Annotated[float, typer.Option(min=0, max=1, help="Bit error rate.")] = 1e-4,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="torch threads.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
) -> None:
    """Time the server's step against a plain forward and backward pass of the float network on the same batch."""
    memory.keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        module = zoo.build(network).eval()
        if weights is not None:
            zoo.load_weights(module, weights)
        images = photos(data, max(CALIBRATION, batch), side)
        lowered = lowering.lower(module, images[:CALIBRATION], IMAGENET_MEAN, IMAGENET_STD, network)
    except ValueError as error:  # of the zoo, the data or the lowering: each says what does not fit
        raise typer.BadParameter(str(error)) from error
    warm()
    images = images[:batch]
    labels = np.arange(batch) % lowered.layers[-1].shape[2]
    x, truth = lowering.normalise(images, IMAGENET_MEAN, IMAGENET_STD), torch.from_numpy(labels)
    peers = {
        "torch": plain(module, x, truth),
        "torch_folded": plain(folded(module), x.contiguous(memory_format=torch.channels_last), truth),
    }
    found = report(*measure(Server(lowered, images, labels, ber), peers, rounds))
    console = Console()
    table = Table("what", "value", title=f"{network}, batch {batch}, {threads} threads, BER {ber:g}", title_justify="left")
    ms = found["ms"]
    assert isinstance(ms, dict)
    for name, value in found.items():
        if name != "ms":
            table.add_row(name, f"{value:.3f}")
    for name, value in ms.items():
        table.add_row(f"{name} ms", f"{value:.1f}")
    console.print(table)
    if json_file is not None:
        settings = {
            "network": network,
            "weights": "random" if weights is None else weights.name,
            "batch": batch,
            "threads": threads,
            "ber": ber,
            "rounds": rounds,
            "path": Engine(lowered).path,
        }
        json_file.write_text(json.dumps(settings | found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
