"""Bytes and speed of everything that crosses the link, on real faults: ``python -m benchmarks.codec --help``.

One device, one batch an iteration. Every codec sees the same images and the same faults. Bytes are on the wire: bodies,
digests, messages, MQTT and TCP framing. Speeds are of one thread, in CPU time, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from accelsim import storage
from accelsim.accelerator import Simulated
from accelsim.faults import Rates
from accelsim.network import Network
from experiments import chain, iteration
from experiments.chain import Batch
from experiments.networks import int8_network
from r2f import data as datasets
from services.codec import inputs, layers
from services.voter.vote import Kind, vote


def vote_against_copy(count: int, kind: Kind) -> float:
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


def measure(network: Network, data: datasets.Dataset, ber: float, batch: int, batches: int, seed: int) -> dict[str, Any]:
    """Every codec on ``batches`` batches; sums of bytes, shares of elements, MB/s of the chained codec."""
    device = Simulated(Rates.uniform(ber), seed)
    device.load(network)
    engine = device.engine
    rng = np.random.default_rng(seed)
    similar = chain.similarity(device, engine, network.quantize_images(_noise(network)), "layer")
    under = chain.dissimilar(similar, 0.60)
    order = rng.permutation(len(data.train_images))
    runs: dict[str, list[Batch]] = {name: [] for name in ("direct", "zstd", "golden", "plain", "chained", "exact")}
    input_raw = input_sent = 0
    updates = []
    for number in range(batches + 1):
        samples = order[(number * batch) % len(order) :][:batch]
        images = data.train_images[samples]
        x = network.quantize_images(images)
        exact = chain.chained(device, engine, x, number, exact=True)
        if number == 0:
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
        "mismatched_share": sum(b.mismatched_share * b.raw for b in chained) / raw,
        "plain_mismatched_share": sum(b.mismatched_share * b.raw for b in runs["plain"]) / raw,
        "golden_mismatched_share": sum(b.mismatched_share * b.raw for b in runs["golden"]) / raw,
        "exact_mismatched_share": sum(b.mismatched_share * b.raw for b in runs["exact"]) / raw,
        "exact_round_trips": sum(b.round_trips for b in runs["exact"]),
        "exact_repair_bytes": sum(b.repair_up + b.repair_down for b in runs["exact"]),
        "encode_mb_s": raw / sum(s.encode_s for b in chained for s in b.layers) / 1e6,
        "decode_mb_s": raw / sum(s.decode_s for b in chained for s in b.layers) / 1e6,
        "executions": sum(s.executions * s.raw for b in chained for s in b.layers) / raw,
        "referee_share": sum(s.refereed for b in chained for s in b.layers) / macs,
        "referee_s": sum(s.referee_s for b in chained for s in b.layers) / batches,
        "layers_direct": sum(s.body[0] <= layers.ZSTD for b in chained for s in b.layers) / batches,
        "golden_layers_direct": len(under),
        "input_raw_bytes": input_raw,
        "input_bytes": input_sent,
        "model_bytes": model_delta,
        "model_full_bytes": model_whole,
        "iteration_direct_bytes": result["direct_bytes"] + input_raw + model_whole,
        "iteration_chained_bytes": result["chained_bytes"] + input_sent + model_delta,
        "batches": batches,
    }
    return result


def _noise(network: Network) -> Any:
    """The paper's one random input."""
    return np.random.default_rng(0).integers(0, 256, (1, *network.input_shape), dtype=np.uint8)


def show(result: dict[str, Any], console: Console) -> None:
    """The table that the JSON holds, for people."""
    raw, bound = result["raw_bytes"], result["bound_bytes"]
    table = Table("codec", "bytes", "of direct", "of the bound", "wrong elements")
    wrong = {"golden": "golden_mismatched_share", "plain": "plain_mismatched_share", "chained": "mismatched_share"}
    names = {
        "direct": "direct (DRM)",
        "zstd": "zstd on direct",
        "golden": "golden, 60 %, layer-wise",
        "plain": "chained, three-way votes",
        "chained": "chained",
        "exact": "chained, exact",
    }
    for name, title in names.items():
        sent = result[f"{name}_bytes"]
        share = result[wrong[name]] if name in wrong else 0.0
        table.add_row(title, f"{sent:,}", f"{sent / raw:.3%}", f"{sent / bound:.2f}" if bound else "-", f"{share:.5%}")
    console.print(table)
    console.print(
        f"increments {result['increment_bytes']:,} B ({result['increment_bytes'] / bound if bound else 0:.2f} of the bound), "
        f"digests and framing {result['framing_bytes']:,} B; "
        f"inputs {result['input_bytes']:,} of {result['input_raw_bytes']:,} B; "
        f"model {result['model_bytes']:,} of {result['model_full_bytes']:,} B"
    )
    console.print(
        f"encode {result['encode_mb_s']:.0f} MB/s, decode {result['decode_mb_s']:.0f} MB/s; "
        f"executions a layer {result['executions']:.2f}, referee {result['referee_share']:.2%} of the MACs "
        f"({result['referee_s']:.2f} s a batch); exact: {result['exact_round_trips']} round trips in "
        f"{result['batches']} batches, {result['exact_repair_bytes']:,} B"
    )
    console.print(
        f"whole iteration: {result['iteration_chained_bytes']:,} of {result['iteration_direct_bytes']:,} B, "
        f"{result['iteration_chained_bytes'] / result['iteration_direct_bytes']:.2%}"
    )


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
    console = Console()
    data = datasets.load(given.data)
    stored = Path(given.network).suffix == ".safetensors"
    network = storage.load(given.network) if stored else int8_network(given.network, given.weights, data.train_images)
    data.check(network)
    result = measure(network, data, given.ber, given.batch, given.batches, given.seed)
    result |= {"network": network.name, "ber": given.ber, "random_weights": given.weights is None and not stored}
    result["vote_of_copy"] = {f"{kind}{n}": vote_against_copy(n, kind) for kind in ("median", "bitwise") for n in (3, 5, 7)}
    show(result, console)
    console.print("vote, of a copy's speed: " + ", ".join(f"{k} {v:.0%}" for k, v in result["vote_of_copy"].items()))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
