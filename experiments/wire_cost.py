"""What one iteration costs for every network, error rate and link: the paper's method and ours, measured on the same faults.

``python -m experiments.wire_cost --out FILE`` writes what ``fig6_time`` and ``fig7_bytes`` draw. Bytes are those really
produced, with MQTT and TCP framing in the chunks of each link. Device times are modelled (``accelsim.timing``,
``core.referee``), the server's are CPU seconds of this host over its threads, and the device's coding is this host's times
``DEVICE_SLOWER``. Rows with JPEG inputs are of runs on the decoded pixels, with their own faults' increments.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from accelsim import timing
from accelsim.accelerators import Simulated
from accelsim.faults import Rates
from accelsim.int8.network import Conv, Network, UInt8
from broker.link import PROFILES, Profile
from experiments import iteration
from experiments.common import chain
from experiments.common.chain import Batch
from experiments.common.networks import FIVE, photos, stored
from services.codec.core import inputs
from services.edge_agent.core import referee

BATCH: Final = 16
BERS: Final = (1e-6, 1e-5, 1e-4)
THRESHOLDS: Final = (0.80, 0.60, 0.50)
LINKS: Final = ("802.15.4g", "hspa", "lora", "lte")
EVALUATED: Final = ("802.15.4g", "hspa")
"""The links of the paper's Fig. 6, over which averages are taken."""
JPEG_QUALITY: Final = 95
DEVICE_SLOWER: Final = 6.0
"""A Cortex-A53 at 1.2 GHz beside one core of the host, in coding: clock and width. An assumption, not a measurement."""
ARRAY: Final = timing.Array()

Method = Literal["drm", "aprm80", "aprm60", "aprm50", "lossless", "jpeg", "known"]
"""The paper's direct retraining and its three thresholds, and ours with lossless inputs, with JPEG inputs, and where the server
has the samples from an epoch before."""
OURS: Final[tuple[Method, ...]] = ("lossless", "jpeg", "known")


class Stages(msgspec.Struct, kw_only=True):
    """Seconds of each stage of one iteration (paper, Fig. 6) over one link, and the same with stages overlapping."""

    forward: float
    tmr: float
    increment: float
    coding: float
    uplink: float
    backward: float
    downlink: float
    overlapped: float

    def total(self) -> float:
        """The stages one after another, as the paper counts."""
        return self.forward + self.tmr + self.increment + self.coding + self.uplink + self.backward + self.downlink


class Cost(msgspec.Struct, kw_only=True):
    """One network at one error rate by one method over one link."""

    network: str
    random_weights: bool
    ber: float
    link: str
    method: Method
    layers_bytes: int
    """Intermediate outputs on the wire."""
    input_bytes: int
    model_bytes: int
    bound_bytes: float
    mismatched_share: float
    round_trips: int
    referee_share: float
    executions: float
    layers_direct: int
    stages: Stages


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
                    stages=_stages(network, batch, method, link, sent[method], input_bytes, model_bytes, step),
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


@dataclass(frozen=True, slots=True)
class _Images:
    """A batch's inputs on the link, and what they cost: CPU seconds of one thread of this host."""

    body: int
    before_s: float = 0.0
    """Of the device before it can run: a JPEG has to be made and decoded again, as the network runs on its pixels."""
    encode_s: float = 0.0
    """Of the device while it runs."""
    decode_s: float = 0.0
    """Of the server."""


def _inputs(images: UInt8) -> tuple[dict[Method, _Images], dict[Method, UInt8]]:
    """By method, the inputs as sent and, for ours, the pixels that the device runs on."""
    shape = images.shape[1:]

    def least(work: Callable[[], object]) -> float:
        times = []
        for _ in range(4):
            start = time.thread_time()
            work()
            times.append(time.thread_time() - start)
        return min(times)

    floats = _Images(4 * images.size)
    packed = inputs.encode(images)
    files, seen = inputs.lossy(images, JPEG_QUALITY)
    lossless = _Images(
        len(packed),
        encode_s=least(lambda: inputs.encode(images)),
        decode_s=least(lambda: inputs.decode(packed, len(images), shape)),
    )
    jpeg = _Images(
        len(files),
        before_s=least(lambda: inputs.lossy(images, JPEG_QUALITY)),
        decode_s=least(lambda: inputs.decode(files, len(images), shape)),
    )
    sent: dict[Method, _Images] = dict.fromkeys(("drm", "aprm80", "aprm60", "aprm50"), floats)
    return sent | {"lossless": lossless, "jpeg": jpeg, "known": _Images(0)}, {"lossless": images, "jpeg": seen}


def _stages(
    network: Network,
    batch: Batch,
    method: Method,
    link: Profile,
    images: _Images,
    input_bytes: int,
    model_bytes: int,
    step: iteration.Update,
) -> Stages:
    forward = tmr = increment = coding = 0.0
    # The services of the pipeline, each taking the segments in order: agent, voter, encoder, uplink, decoder.
    agent, voter, encoder = [images.before_s * DEVICE_SLOWER], [0.0], [images.encode_s * DEVICE_SLOWER]
    uplink, decoder = [input_bytes * 8 / link.up], [images.decode_s]
    coding = agent[0] + encoder[0] + decoder[0]
    for segment, on_wire in zip(batch.segments(), batch.segments_up(link), strict=True):
        run = more = vote = subtract = encode = decode = 0.0
        for sent in segment:
            layer = network.layers[sent.index]
            assert isinstance(layer, Conv)
            shape = network.shape_of(layer.inputs[0])
            one = timing.layer_timing(sent.index, layer, shape, ARRAY, batch=batch.images, executions=sent.executions)
            once = one.forward_s + one.write_back_s
            run += once
            if method.startswith("aprm"):
                # The TMR run's three executions come on top of the actual one, and its vote reads three.
                more += 3 * once
                vote += timing.vote_seconds(sent.raw, 3, ARRAY)
            else:
                voting = timing.vote_seconds(sent.raw, sent.executions, ARRAY) if sent.executions > 1 else 0.0
                more += one.tmr_s - voting + sent.referee_s
                vote += voting
            if method != "drm":
                subtract += sent.raw * 3 / ARRAY.vote_bytes_per_s
                encode += sent.encode_s * DEVICE_SLOWER
            decode += sent.decode_s + sent.rebuild_s
        forward, tmr, increment, coding = forward + run, tmr + more + vote, increment + subtract, coding + encode + decode
        agent.append(run + more)
        voter.append(vote)
        encoder.append(subtract + encode)
        uplink.append(on_wire * 8 / link.up)
        decoder.append(decode)
    repairing = batch.repair_macs / referee.WHOLE_MACS_PER_S
    asked = (batch.up(link) - sum(batch.segments_up(link))) * 8 / link.up + batch.round_trips * 2 * link.latency_s
    downlink = (model_bytes + batch.down(link)) * 8 / link.down
    backward = step.backward_s + step.quantise_s
    model = 0.0 if method not in OURS else step.encode_s + step.decode_s * DEVICE_SLOWER
    return Stages(
        forward=forward,
        tmr=tmr + repairing,
        increment=increment,
        coding=coding + batch.repair_s + model,
        uplink=sum(uplink) + asked,
        backward=backward,
        downlink=downlink,
        # Repairs come when everything else is there, and only then does the backward pass begin, at the last layer.
        overlapped=_pipelined(agent, voter, encoder, uplink, decoder)
        + repairing
        + batch.repair_s
        + asked
        + backward
        + model
        + downlink,
    )


def _pipelined(*stages: list[float]) -> float:
    """Seconds until the last layer has left the last stage, each stage taking the layers in order, one at a time."""
    done = [0.0] * len(stages[0])
    for stage in stages:
        free = 0.0
        for layer, seconds in enumerate(stage):
            free = done[layer] = max(free, done[layer]) + seconds
    return done[-1]


def _noise(network: Network) -> UInt8:
    """The one random input of the paper's offline analysis (section VI.B)."""
    return np.random.default_rng(0).integers(0, 256, (1, *network.input_shape), dtype=np.uint8)


def load(path: Path) -> list[Cost]:
    """What ``main`` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=list[Cost])


def main() -> None:
    """Command line."""
    shared = Path(os.environ.get("R2F_DATA", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=shared, help="folder with data/ and weights/")
    parser.add_argument("--cache", type=Path, default=Path("runs/networks"), help="where lowered networks are kept")
    parser.add_argument("--out", type=Path, default=Path("runs/wire_cost.json"))
    given = parser.parse_args()
    images = photos(given.shared)
    costs: list[Cost] = []
    for source in FIVE:
        network = stored(source, given.shared, images, given.cache)
        for ber in BERS:
            start = time.perf_counter()
            batch = images[100 : 100 + BATCH]
            costs += measure(network, source.paper, source.weights is None, batch, ber, warm=ber == BERS[0])
            print(f"{source.paper} at {ber:g}: {time.perf_counter() - start:.0f} s", flush=True)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=1))


if __name__ == "__main__":
    main()
