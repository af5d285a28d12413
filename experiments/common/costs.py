"""What one iteration costs over a link: bytes, and seconds by stage, one after another and overlapping."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from accelsim import timing
from accelsim.int8.network import Conv, Network
from broker.link import Profile
from experiments.common.chain import Batch
from experiments.common.command import InputError
from experiments.common.iteration import Update
from services.edge_agent.core import referee

BERS: Final = (1e-6, 1e-5, 1e-4)
LINKS: Final = ("802.15.4g", "hspa", "lora", "lte")
EVALUATED: Final = ("802.15.4g", "hspa")
"""The links of the paper's Fig. 6, over which averages are taken."""
SHOWN: Final = {"802.15.4g": "802.15.4g", "hspa": "HSPA", "lora": "LoRa", "lte": "LTE"}
DEVICE_SLOWER: Final = 6.0
"""A Cortex-A53 at 1.2 GHz beside one core of the host, in coding: clock and width. An assumption, not a measurement."""
ARRAY: Final = timing.Array()

Method = Literal["drm", "aprm80", "aprm60", "aprm50", "lossless", "jpeg", "known"]
"""The paper's direct retraining and its three thresholds, and ours with lossless inputs, with JPEG inputs, and where the server
has the samples from an epoch before."""
METHODS: Final[tuple[Method, ...]] = ("drm", "aprm80", "aprm60", "aprm50", "lossless", "jpeg", "known")
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


def load(path: Path) -> list[Cost]:
    """What ``experiments.wire_cost`` wrote: every method over every link at every rate, for each network that is in it.

    Raises InputError where it cannot be read, or where a network is there in part: an average would be over others.
    """
    try:
        costs = msgspec.json.decode(path.read_bytes(), type=list[Cost])
    except FileNotFoundError:
        raise InputError(f"{path}: not found; python -m experiments.wire_cost measures it") from None
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: not what experiments.wire_cost writes: {error}") from error
    if not costs:
        raise InputError(f"{path}: nothing was measured")
    found = {(c.network, c.ber, c.link, c.method) for c in costs}
    for key in ((n, b, k, m) for n in networks(costs) for b in BERS for k in LINKS for m in METHODS):
        if key not in found:
            name, ber, link, method = key
            raise InputError(f"{path}: {name} at {ber:g} over {link} by {method} is missing; measure again")
    return costs


def networks(costs: list[Cost]) -> list[str]:
    """Names of the networks, in their order."""
    return list(dict.fromkeys(cost.network for cost in costs))


@dataclass(frozen=True, slots=True)
class Images:
    """A batch's inputs on the link, and what they cost: CPU seconds of one thread of this host."""

    body: int
    before_s: float = 0.0
    """Of the device before it can run: a JPEG has to be made and decoded again, as the network runs on its pixels."""
    encode_s: float = 0.0
    """Of the device while it runs."""
    decode_s: float = 0.0
    """Of the server."""


def stages(
    network: Network,
    batch: Batch,
    method: Method,
    link: Profile,
    images: Images,
    input_bytes: int,
    model_bytes: int,
    step: Update,
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
        overlapped=pipelined(agent, voter, encoder, uplink, decoder)
        + repairing
        + batch.repair_s
        + asked
        + backward
        + model
        + downlink,
    )


def pipelined(*stages: list[float]) -> float:
    """Seconds until the last layer has left the last stage, each stage taking the layers in order, one at a time."""
    done = [0.0] * len(stages[0])
    for stage in stages:
        free = 0.0
        for layer, seconds in enumerate(stage):
            free = done[layer] = max(free, done[layer]) + seconds
    return done[-1]
