"""What one iteration costs for every network, error rate and link: the paper's method and ours, measured on the same faults.

``python -m experiments.wire_cost --out FILE`` writes what ``fig6_time`` and ``fig7_bytes`` draw. Bytes are those really
produced, with MQTT and TCP framing. Device times are modelled (``accelsim.timing``, ``accelsim.referee``), the server's are
measured on this host, and the device's coding is this host's times ``DEVICE_SLOWER``.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from accelsim import referee, timing
from accelsim.accelerator import Simulated
from accelsim.faults import Rates
from accelsim.network import Conv, Network, UInt8
from broker.link import PROFILES
from experiments import chain, iteration
from experiments.chain import Batch
from experiments.networks import FIVE, photos, stored
from services.codec import inputs

BATCH: Final = 16
BERS: Final = (1e-6, 1e-5, 1e-4)
THRESHOLDS: Final = (0.80, 0.60, 0.50)
LINKS: Final = ("802.15.4g", "hspa", "lora", "lte")
EVALUATED: Final = ("802.15.4g", "hspa")
"""The links of the paper's Fig. 6, over which averages are taken."""
JPEG_QUALITY: Final = 90
DEVICE_SLOWER: Final = 6.0
"""A Cortex-A53 at 1.2 GHz beside one core of the host, in coding: clock and width. An assumption, not a measurement."""
ARRAY: Final = timing.Array()

Method = Literal["drm", "aprm80", "aprm60", "aprm50", "lossless", "jpeg"]
"""The paper's direct retraining and its three thresholds, and ours with lossless and with JPEG inputs."""


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
    drm = chain.direct(device, x, 1)
    aprm = {
        threshold: chain.golden(device, engine, x, 1, direct_layers=chain.dissimilar(similar, threshold), redundancy="layer")
        for threshold in THRESHOLDS
    }
    ours = {referee.short(PROFILES[link].up): Batch(0) for link in LINKS}
    for longest in ours:
        ours[longest] = chain.chained(device, engine, x, 1, exact=True, longest=longest)
    step = iteration.update(network, engine, x, next(iter(ours.values())).outputs, np.arange(len(images)) % 1000)
    float_inputs = iteration.inputs_wire(4 * images.size, len(images))
    lossless = iteration.inputs_wire(len(inputs.encode(images)), len(images))
    jpeg = iteration.inputs_wire(len(inputs.lossy(images, JPEG_QUALITY)[0]), len(images))
    whole, delta = iteration.model_wire(step.whole), iteration.model_wire(step.delta)
    macs = len(images) * sum(int(np.prod(layer.shape)) * layer.weight[0].size for _, layer in network.convs())
    costs = []
    for link in LINKS:
        mine = ours[referee.short(PROFILES[link].up)]
        methods: list[tuple[Method, Batch, int, int]] = [
            ("drm", drm, float_inputs, whole),
            *((f"aprm{round(100 * t)}", batch, float_inputs, whole) for t, batch in aprm.items()),  # type: ignore[list-item]
            ("lossless", mine, lossless, delta),
            ("jpeg", mine, jpeg, delta),
        ]
        for method, batch, input_bytes, model_bytes in methods:
            costs.append(
                Cost(
                    network=name,
                    random_weights=random_weights,
                    ber=ber,
                    link=link,
                    method=method,
                    layers_bytes=batch.wire,
                    input_bytes=input_bytes,
                    model_bytes=model_bytes,
                    bound_bytes=sum(s.bound for s in batch.layers),
                    mismatched_share=batch.mismatched_share,
                    round_trips=batch.round_trips,
                    referee_share=(sum(s.refereed for s in batch.layers) + batch.repair_macs) / macs,
                    executions=sum(s.executions * s.raw for s in batch.layers) / batch.raw,
                    layers_direct=sum(s.body[0] <= 1 for s in batch.layers),
                    stages=_stages(network, batch, method, link, input_bytes, model_bytes, step),
                )
            )
    return costs


def _stages(
    network: Network, batch: Batch, method: Method, link: str, input_bytes: int, model_bytes: int, step: iteration.Update
) -> Stages:
    profile = PROFILES[link]
    forward = tmr = increment = coding = 0.0
    device_l, link_l, server_l = [0.0], [input_bytes * 8 / profile.up], [0.0]
    framing = batch.wire / batch.bodies
    for sent in batch.layers:
        layer = network.layers[sent.index]
        assert isinstance(layer, Conv)
        shape = network.shape_of(layer.inputs[0])
        one = timing.layer_timing(sent.index, layer, shape, ARRAY, batch=batch.images, executions=sent.executions)
        runs = one.forward_s + one.write_back_s
        # The TMR run's three executions come on top of the actual one, and its vote reads three.
        apart = 3 * runs + timing.vote_seconds(sent.raw, 3, ARRAY)
        more = apart if method.startswith("aprm") else one.tmr_s + sent.referee_s
        subtract = 0.0 if method == "drm" else sent.raw * 3 / ARRAY.vote_bytes_per_s
        encode = 0.0 if method == "drm" else sent.encode_s * DEVICE_SLOWER
        forward, tmr, increment = forward + runs, tmr + more, increment + subtract
        coding += encode + sent.decode_s
        device_l.append(runs + more + subtract + encode)
        link_l.append(len(sent.body) * framing * 8 / profile.up)
        server_l.append(sent.decode_s)
    tmr += batch.repair_macs / referee.WHOLE_MACS_PER_S
    uplink = (batch.wire + input_bytes) * 8 / profile.up + batch.round_trips * 2 * profile.latency_s
    downlink = (model_bytes + batch.repair_down) * 8 / profile.down
    backward = step.backward_s + step.quantise_s
    tail = backward + downlink + batch.repair_macs / referee.WHOLE_MACS_PER_S
    return Stages(
        forward=forward,
        tmr=tmr,
        increment=increment,
        coding=coding,
        uplink=uplink,
        backward=backward,
        downlink=downlink,
        overlapped=_pipelined(device_l, link_l, server_l) + tail,
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
