"""What one iteration costs for every network, error rate and link: the paper's method and ours, measured on the same faults.

``python -m experiments.wire_cost --out FILE`` writes what ``fig6_time`` and ``fig7_bytes`` draw. Bytes are those really
produced, with MQTT and TCP framing in the chunks of each link. Device times are modelled (``accelsim.timing``,
``core.referee``), the server's are CPU seconds of this host over its threads, and the device's coding is this host's times
``DEVICE_SLOWER``. Rows with JPEG inputs are of runs on the decoded pixels, with their own faults' increments.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from accelsim.accelerators import Simulated
from accelsim.faults import Rates
from accelsim.int8.network import Network, UInt8
from broker.link import PROFILES
from experiments.common import chain, command, iteration
from experiments.common.chain import Batch
from experiments.common.costs import BERS, LINKS, OURS, Cost, Images, Method, stages
from experiments.common.networks import FIVE, photos, stored
from services.codec.core import inputs
from services.edge_agent.core import referee

BATCH: Final = 16
THRESHOLDS: Final = (0.80, 0.60, 0.50)
JPEG_QUALITY: Final = 95


def measure(network: Network, name: str, random_weights: bool, images: UInt8, ber: float, warm: bool) -> list[Cost]:
    """Every method over every link for one batch of uint8 images (N, H, W, C). ``warm`` runs one more batch first."""
    device = Simulated(Rates.uniform(ber), seed=1)
    device.load(network)
    engine = device.engine
    x = network.quantize_images(images)
    if warm:
        chain.chained(device, engine, x, 0)
    similar = chain.similarity(device, engine, network.quantize_images(_noise(network)), "layer")
    links = [PROFILES[name] for name in LINKS]
    labels = np.arange(len(images)) % 1000
    sent, pixels = _inputs(images)
    drm = chain.direct(device, x, 1)
    increments = chain.golden(device, engine, x, 1, direct_layers=frozenset(), redundancy="layer")
    aprm = {threshold: _mixed(increments, drm, chain.dissimilar(similar, threshold)) for threshold in THRESHOLDS}
    lengths = {layer.weight[0].size for _, layer in network.convs()}
    # Links between whose limits no dot product lies send the same.
    limits = {link.name: max((n for n in lengths if n <= referee.short(link.up)), default=0) for link in links}
    ours: dict[tuple[Method, int], Batch] = {}
    for method, shown in pixels.items():
        seen = network.quantize_images(shown)
        for limit in set(limits.values()):
            ours[method, limit] = chain.chained(device, engine, seen, 1, exact=True, longest=limit)
    for limit in set(limits.values()):
        ours["known", limit] = ours["lossless", limit]
    step = iteration.update(network, engine, x, ours["lossless", limits[links[0].name]].outputs, labels)
    macs = len(images) * sum(int(np.prod(layer.shape)) * layer.weight[0].size for _, layer in network.convs())
    costs = []
    for link in links:
        rows: list[tuple[Method, Batch]] = [
            ("drm", drm),
            *((f"aprm{round(100 * t)}", batch) for t, batch in aprm.items()),  # type: ignore[list-item]
            *((method, ours[method, limits[link.name]]) for method in OURS),
        ]
        for method, batch in rows:
            input_bytes = iteration.inputs_wire(sent[method].body, len(images), link, known=method == "known")
            model_bytes = iteration.model_wire(step.delta if method in OURS else step.whole, link)
            costs.append(
                Cost(
                    network=name,
                    random_weights=random_weights,
                    ber=ber,
                    link=link.name,
                    method=method,
                    layers_bytes=batch.up(link),
                    input_bytes=input_bytes,
                    model_bytes=model_bytes,
                    bound_bytes=sum(s.bound for s in batch.layers),
                    mismatched_share=batch.mismatched_share,
                    round_trips=batch.round_trips,
                    referee_share=(sum(s.refereed for s in batch.layers) + batch.repair_macs) / macs,
                    executions=sum(s.executions * s.raw for s in batch.layers) / batch.raw,
                    layers_direct=sum(s.body[0] <= 1 for s in batch.layers),
                    stages=stages(network, batch, method, link, sent[method], input_bytes, model_bytes, step),
                )
            )
    return costs


def _mixed(increments: Batch, direct: Batch, direct_layers: frozenset[int]) -> Batch:
    """The paper's method at a threshold: the layers under it as they are, the TMR run goes on through them."""
    layers = [
        replace(plain, executions=sent.executions, rebuild_s=sent.rebuild_s) if sent.index in direct_layers else sent
        for sent, plain in zip(increments.layers, direct.layers, strict=True)
    ]
    return Batch(images=increments.images, layers=layers)


def _inputs(images: UInt8) -> tuple[dict[Method, Images], dict[Method, UInt8]]:
    """By method, the inputs as sent and, for ours, the pixels that the device runs on."""
    shape = images.shape[1:]

    def least(work: Callable[[], object]) -> float:
        times = []
        for _ in range(4):
            start = time.thread_time()
            work()
            times.append(time.thread_time() - start)
        return min(times)

    floats = Images(4 * images.size)
    packed = inputs.encode(images)
    files, seen = inputs.lossy(images, JPEG_QUALITY)
    lossless = Images(
        len(packed),
        encode_s=least(lambda: inputs.encode(images)),
        decode_s=least(lambda: inputs.decode(packed, len(images), shape)),
    )
    jpeg = Images(
        len(files),
        before_s=least(lambda: inputs.lossy(images, JPEG_QUALITY)),
        decode_s=least(lambda: inputs.decode(files, len(images), shape)),
    )
    sent: dict[Method, Images] = dict.fromkeys(("drm", "aprm80", "aprm60", "aprm50"), floats)
    return sent | {"lossless": lossless, "jpeg": jpeg, "known": Images(0)}, {"lossless": images, "jpeg": seen}


def _noise(network: Network) -> UInt8:
    """The one random input of the paper's offline analysis (section VI.B)."""
    return np.random.default_rng(0).integers(0, 256, (1, *network.input_shape), dtype=np.uint8)


def main() -> None:
    """Measures, a network at a time."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_cache(parser)
    command.add_networks(parser, [source.zoo for source in FIVE])
    parser.add_argument("--out", type=Path, default=Path("runs/wire_cost.json"), help="file that is written [%(default)s]")
    given = parser.parse_args()
    images = photos(given.shared)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    costs: list[Cost] = []
    for source in (source for source in FIVE if source.zoo in given.network):
        network = stored(source, given.shared, images, given.cache)
        for ber in BERS:
            start = time.perf_counter()
            batch = images[100 : 100 + BATCH]
            costs += measure(network, source.paper, source.weights is None, batch, ber, warm=ber == BERS[0])
            print(f"{source.paper} at {ber:g}: {time.perf_counter() - start:.0f} s", flush=True)
        # Written when a network is done: what is drawn from the file is of whole networks.
        given.out.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=1))


if __name__ == "__main__":
    command.run(main)
