"""Bytes and speed of everything that crosses the link, on real faults: ``python -m benchmarks.codec --help``.

One device, one batch an iteration. Every codec sees the same images and the same faults. Bytes are on the wire: bodies,
digests, messages, MQTT and TCP framing. Speeds are of one thread, in CPU time, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from accelsim import datasets as datasets
from accelsim.accelerators import Simulated
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from experiments.common import chain, iteration
from experiments.common.chain import Batch
from experiments.common.networks import int8_network
from services.codec.core import inputs, layers
from services.codec.core.server_end import MAX_BATCH
from services.scheme import Scheme, Vote
from services.voter.core.vote import vote

CODECS: Final = {
    "direct": "direct (DRM)",
    "zstd": "zstd on direct",
    "golden": "golden, 60 %, layer-wise",
    "plain": "chained, three-way votes",
    "chained": "chained",
    "exact": "chained, exact",
}
OURS: Final = ("plain", "chained", "exact")
"""These send inputs losslessly packed and the model as a delta; the others pixels and the whole model."""
OUTPUT_COLUMNS: Final = (
    "bodies, B",
    "digests, framing, B",
    "of direct",
    "of the bound",
    "wrong elements",
    "encode, decode MB/s",
)
ITERATION_COLUMNS: Final = ("outputs, B", "inputs, B", "model, B", "all, B", "of direct")
WIDTH: Final = 132
SIZE: Final = (224, 224, 3)
"""Of images in a folder, for a network of the zoo."""


def vote_against_copy(count: int, kind: Vote) -> float:
    """Speed of a vote over a plain copy of as many bytes (read: ``count`` replicas, written: one), best of seven."""
    size = 16 << 20
    generator = np.random.default_rng(0)
    replicas = [generator.integers(-128, 128, size, dtype=np.int8) for _ in range(count)]
    source = np.zeros((count + 1) * size // 2, np.int8)
    target = np.ones_like(source)
    return _best(lambda: np.copyto(target, source)) / _best(lambda: vote(replicas, kind))


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(8):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times[1:])


def measure(
    network: Network, data: datasets.Dataset, ber: float, batch: int, batches: int, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Every codec on ``batches`` batches; sums of bytes, shares of elements, MB/s. ``say`` is told of each batch."""
    device = Simulated(Rates.uniform(ber), seed)
    device.load(network)
    engine = device.engine
    rng = np.random.default_rng(seed)
    similar = chain.similarity(device, engine, network.quantize_images(_noise(network)), "layer")
    under = chain.dissimilar(similar, Scheme().theta)
    order = rng.permutation(len(data.train_images))
    runs: dict[str, list[Batch]] = {name: [] for name in CODECS}
    input_raw = input_sent = 0
    updates = []
    for number in range(batches + 1):
        start = time.perf_counter()
        samples = np.take(order, np.arange(number * batch, (number + 1) * batch), mode="wrap")
        images = data.train_images[samples]
        x = network.quantize_images(images)
        exact = chain.chained(device, engine, x, number, exact=True)
        if number == 0:
            say(f"warm-up: {time.perf_counter() - start:.1f} s")
            continue  # the first batch compiles and warms the caches
        runs["exact"].append(exact)
        runs["chained"].append(chain.chained(device, engine, x, number) if exact.round_trips else exact)
        runs["plain"].append(chain.chained(device, engine, x, number, settle=False))
        runs["direct"].append(chain.direct(device, x, number))
        runs["zstd"].append(chain.direct(device, x, number, compressed=True))
        runs["golden"].append(chain.golden(device, engine, x, number, direct_layers=under, redundancy="layer"))
        input_raw += iteration.inputs_wire(images.nbytes, batch)
        input_sent += iteration.inputs_wire(len(inputs.encode(images)), batch)
        updates.append(iteration.update(network, engine, x, exact.outputs, data.train_labels[samples]))
        say(f"batch {number} of {batches}: {time.perf_counter() - start:.1f} s")
    chained = runs["chained"]
    raw = sum(b.raw for b in chained)
    macs = batches * batch * sum(int(np.prod(layer.shape)) * layer.weight[0].size for _, layer in network.convs())
    model_whole = sum(iteration.model_wire(u.whole) for u in updates)
    model_delta = sum(iteration.model_wire(u.delta) for u in updates)
    result: dict[str, Any] = {f"{name}_bytes": sum(b.wire for b in done) for name, done in runs.items()}
    result |= {
        "raw_bytes": raw,
        "bound_bytes": sum(s.bound for b in chained for s in b.layers),
        "increment_bytes": sum(b.bodies for b in chained),
        "framing_bytes": sum(b.wire - b.bodies for b in chained),
        "mismatched_share": _wrong(chained),
        "encode_mb_s": _speed(chained, "encode_s"),
        "decode_mb_s": _speed(chained, "decode_s"),
        "exact_round_trips": sum(b.round_trips for b in runs["exact"]),
        "exact_repair_bytes": sum(b.repair_up + b.repair_down for b in runs["exact"]),
        "executions": sum(s.executions * s.raw for b in chained for s in b.layers) / raw,
        "referee_share": sum(s.refereed for b in chained for s in b.layers) / macs,
        "referee_s": sum(s.referee_s for b in chained for s in b.layers) / batches,
        "layers_direct": sum(not layers.needs_prediction(s.body) for b in chained for s in b.layers) / batches,
        "golden_layers_direct": len(under),
        "input_raw_bytes": input_raw,
        "input_bytes": input_sent,
        "model_bytes": model_delta,
        "model_full_bytes": model_whole,
        "iteration_direct_bytes": result["direct_bytes"] + input_raw + model_whole,
        "iteration_chained_bytes": result["chained_bytes"] + input_sent + model_delta,
        "batches": batches,
        "codecs": {
            name: {
                "bodies": sum(b.bodies for b in done),
                "framing": sum(b.wire - b.bodies for b in done),
                "inputs": input_sent if name in OURS else input_raw,
                "model": model_delta if name in OURS else model_whole,
                "mismatched_share": _wrong(done),
                "encode_mb_s": _speed(done, "encode_s"),
                "decode_mb_s": _speed(done, "decode_s"),
            }
            for name, done in runs.items()
        },
    }
    return result


def _wrong(done: list[Batch]) -> float:
    """Share (0 to 1) of the elements that the server has wrong."""
    return sum(b.mismatched_share * b.raw for b in done) / sum(b.raw for b in done)


def _speed(done: list[Batch], seconds: Literal["encode_s", "decode_s"]) -> float:
    """MB/s of raw outputs."""
    taken: float = sum(getattr(s, seconds) for b in done for s in b.layers)
    return sum(b.raw for b in done) / taken / 1e6


def _noise(network: Network) -> Any:
    """The paper's one random input."""
    return np.random.default_rng(0).integers(0, 256, (1, *network.input_shape), dtype=np.uint8)


def show(result: dict[str, Any], console: Console) -> None:
    """The table that the JSON holds, for people."""
    bound, whole = result["bound_bytes"], result["iteration_direct_bytes"]
    sent = Table("codec", *(Column(name, justify="right") for name in OUTPUT_COLUMNS), title="intermediate outputs")
    all_ = Table("codec", *(Column(name, justify="right") for name in ITERATION_COLUMNS), title="whole iteration")
    for name, title in CODECS.items():
        parts, total = result["codecs"][name], result[f"{name}_bytes"]
        sent.add_row(
            title,
            f"{parts['bodies']:,}",
            f"{parts['framing']:,}",
            f"{total / result['direct_bytes']:.3%}",
            f"{total / bound:.2f}" if bound else "-",
            f"{parts['mismatched_share']:.5%}",
            f"{parts['encode_mb_s']:.0f}, {parts['decode_mb_s']:.0f}",
        )
        iteration_bytes = total + parts["inputs"] + parts["model"]
        share = f"{iteration_bytes / whole:.2%}"
        all_.add_row(title, f"{total:,}", f"{parts['inputs']:,}", f"{parts['model']:,}", f"{iteration_bytes:,}", share)
    console.print(sent)
    console.print(all_)
    console.print(
        f"increments are {result['increment_bytes'] / bound if bound else 0:.2f} of the bound; "
        f"executions a layer {result['executions']:.2f}; referee {result['referee_share']:.2%} of the MACs "
        f"({result['referee_s']:.2f} s a batch, modelled); exact: {result['exact_round_trips']} round trips in "
        f"{result['batches']} batches, {result['exact_repair_bytes']:,} B; golden sends {result['golden_layers_direct']} "
        "layers direct. Inputs are uint8 pixels, or lossless; the model goes whole, or as a delta."
    )


def prepare(given: argparse.Namespace, say: Callable[[str], None]) -> tuple[Network, datasets.Dataset]:
    """The network and the data set that the options name. Raises ValueError or OSError saying which does not fit."""
    if not 1 <= given.batch <= MAX_BATCH or given.batches < 1:
        raise ValueError(f"--batch {given.batch} and --batches {given.batches}: 1 to {MAX_BATCH} images, 1 batch or more")
    if given.seed < 0:
        raise ValueError(f"--seed {given.seed}: must be 0 or more")
    Rates.uniform(given.ber)
    if not (given.data == datasets.DIGITS or Path(given.data).exists()):
        raise FileNotFoundError(f"--data {given.data}: not found; give an .npz file with train_images and train_labels")
    for path in (given.weights, Path(given.network) if is_stored(given.network) else None):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path}: not found")
    if given.json and not given.json.absolute().parent.is_dir():
        raise FileNotFoundError(f"--json {given.json}: no such folder")
    if given.json and given.json.is_dir():
        raise IsADirectoryError(f"--json {given.json}: is a folder; name a file in it")
    start = time.perf_counter()
    stored = storage.load(given.network) if is_stored(given.network) else None
    # Images in a folder have no one size: they are scaled to the network's.
    size = None if not Path(given.data).is_dir() else SIZE if stored is None else stored.input_shape
    data = datasets.load(given.data, shape=size)
    if stored is not None:
        network = stored
    else:
        shape = "x".join(map(str, data.shape))
        if data.shape[2] != 3:
            raise ValueError(f"{given.data}: images are {shape}; only an int8 network's file can take other than RGB")
        say(f"lowering {given.network}, calibrated on images of {given.data} ...")
        try:
            network = int8_network(given.network, given.weights, data.train_images)
        except RuntimeError as error:
            raise ValueError(f"{given.network} does not run on the {shape} images of {given.data}: {error}") from error
    data.check(network)
    say(f"{network.name}: {len(list(network.convs()))} MAC layers, {time.perf_counter() - start:.1f} s")
    return network, data


def is_stored(network: str) -> bool:
    """Whether the option names an int8 network's file."""
    return Path(network).suffix == ".safetensors"


def main() -> None:
    """Command line."""
    shared = Path(os.environ.get("R2F_DATA", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="squeezenet1_1", help="of the zoo, or an int8 network's .safetensors file")
    parser.add_argument("--weights", type=Path, help="float weights; random ones without")
    parser.add_argument("--data", default=str(shared / "data" / "imagenet224.npz"))
    parser.add_argument("--ber", type=float, default=1e-5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        network, data = prepare(given, say)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    result = measure(network, data, given.ber, given.batch, given.batches, given.seed, say)
    random = given.weights is None and not is_stored(given.network)
    result |= {"network": network.name, "ber": given.ber, "random_weights": random}
    result["vote_of_copy"] = {f"{kind}{n}": vote_against_copy(n, kind) for kind in ("median", "bitwise") for n in (3, 5, 7)}
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH  # what is kept in a file has no need to wrap
    show(result, console)
    console.print("vote, of a copy's speed: " + ", ".join(f"{k} {v:.0%}" for k, v in result["vote_of_copy"].items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"{'random weights; ' if random else ''}peak memory of this process {peak:,.0f} MB")
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
