"""The server ends up with just what the device computed, on all five networks and at every error rate."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8.network import Network, UInt8
from broker.link import PROFILES, STAMP, packet_bytes, stream_bytes
from experiments.common import chain, iteration
from experiments.common.networks import FIVE, int8_network
from services.bus import encoding
from services.bus.chunks import chunk_size, split
from services.scheme import SEGMENT_BYTES, Redundancy
from tests.quick import few_rounds

TOPIC = "r2f/v1/edge-0/up/layers"


def images(count: int) -> UInt8:
    """Smooth pictures with noise, 32x32x3."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32] / 32
    waves = generator.uniform(1, 9, (count, 3, 2))
    smooth = np.stack([[np.sin(a * x + b * y) for a, b in image] for image in waves]).transpose(0, 2, 3, 1)
    return np.clip(128 + 90 * smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


@functools.cache
def lowered(name: str) -> Network:
    with few_rounds():
        return int8_network(name, None, images(8))


# ResNet-50 alone takes a minute, and has no layer that ResNet-18 has not.
@pytest.fixture(scope="module", params=[source.zoo for source in FIVE if source.zoo != "resnet50"])
def network(request: pytest.FixtureRequest) -> Network:
    return lowered(request.param)


def device(network: Network, ber: float) -> Simulated:
    simulated = Simulated(Rates.uniform(ber), seed=3)
    simulated.load(network)
    return simulated


@pytest.mark.parametrize("ber", [1e-4, 1e-3])
@pytest.mark.parametrize("settle", [True, False], ids=["settled", "three-way"])
def test_exact_at_every_error_rate(network: Network, ber: float, settle: bool) -> None:
    # The server's engine is on the portable path whatever the device's is.
    server = Engine(network, "portable")
    x = network.quantize_images(images(4))
    batch = chain.chained(device(network, ber), server, x, 0, settle=settle, exact=True)
    assert batch.mismatched_share == 0
    assert batch.round_trips <= 2
    if not settle and ber == 1e-3:
        assert batch.round_trips > 0, "three-way votes go wrong at this rate, so there must have been something to repair"


def test_settled_votes_need_no_repair(network: Network) -> None:
    simulated = device(network, 1e-4)
    batch = chain.chained(simulated, simulated.engine, network.quantize_images(images(4)), 0)
    assert batch.mismatched_share <= 0.001
    assert batch.round_trips == 0


@pytest.fixture(scope="module")
def squeezenet() -> Network:
    return lowered("squeezenet1_1")


def test_without_faults_every_codec_is_exact_and_increments_are_nothing(squeezenet: Network) -> None:
    simulated = device(squeezenet, 0.0)
    x = squeezenet.quantize_images(images(2))
    chained = chain.chained(simulated, simulated.engine, x, 0)
    golden = chain.golden(simulated, simulated.engine, x, 0, direct_layers=frozenset(), redundancy="network")
    direct = chain.direct(simulated, x, 0)
    assert chained.mismatched_share == golden.mismatched_share == direct.mismatched_share == 0
    assert chained.bodies == 2 * len(chained.layers)
    assert direct.bodies == direct.raw + len(direct.layers)
    assert golden.bodies < direct.raw / 20


@pytest.mark.parametrize("redundancy", ["layer", "network"])
def test_golden_sends_dissimilar_layers_as_they_are(squeezenet: Network, redundancy: Redundancy) -> None:
    simulated = device(squeezenet, 3e-4)
    x = squeezenet.quantize_images(images(2))
    shares = chain.similarity(simulated, simulated.engine, x[:1], redundancy)
    assert list(shares) == [index for index, _ in squeezenet.convs()]
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares[0] > 0.9, "the first layer's errors are its own alone"
    median = float(np.median(list(shares.values())))
    under = chain.dissimilar(shares, median)
    batch = chain.golden(simulated, simulated.engine, x, 0, direct_layers=under, redundancy=redundancy)
    assert {sent.index for sent in batch.layers if sent.body[0] == 0} == under
    assert all(sent.mismatched == 0 for sent in batch.layers if sent.index in under)


def test_layer_wise_votes_are_nearer_to_the_truth_than_network_wise(squeezenet: Network) -> None:
    # Section V.C and Fig. 9 of the paper.
    simulated = device(squeezenet, 1e-4)
    x = squeezenet.quantize_images(images(4))
    layer, network = (chain.similarity(simulated, simulated.engine, x, kind) for kind in ("layer", "network"))
    assert np.mean(list(layer.values())) > np.mean(list(network.values()))


def test_wire_counts_framing(squeezenet: Network) -> None:
    simulated = device(squeezenet, 1e-5)
    batch = chain.chained(simulated, simulated.engine, squeezenet.quantize_images(images(2)), 0)
    # A digest and an index a layer, and the headers of at least one packet.
    assert batch.bodies + 9 * len(batch.layers) + 52 < batch.wire < batch.bodies + 40 * len(batch.layers) + 1000


def test_messages_hold_all_layers_in_segments_and_are_counted_with_every_header(squeezenet: Network) -> None:
    simulated = device(squeezenet, 1e-4)
    batch = chain.direct(simulated, squeezenet.quantize_images(images(32)), 0)
    segments = list(batch.segments())
    assert [sent for segment in segments for sent in segment] == batch.layers
    assert len(segments) > 1
    for segment in segments[:-1]:
        assert sum(sent.raw for sent in segment) >= SEGMENT_BYTES > sum(sent.raw for sent in segment[:-1])
    lora = PROFILES["lora"]
    counted = 0
    for message in batch.messages():
        payload = encoding.encode(message)
        message.origin, message.n = "0" * 12, 999
        stamped = len(encoding.encode(message))
        assert stamped == len(payload) + STAMP
        chunks = -(-len(payload) // chunk_size(lora.up))
        if chunks == 1:
            counted += stream_bytes(packet_bytes(TOPIC, stamped)).forward
            continue
        for n, frame in enumerate(split(message.session, payload, chunk_size(lora.up)), 10_000):
            frame.origin, frame.n = "0" * 12, n
            counted += stream_bytes(packet_bytes(TOPIC, len(encoding.encode(frame)))).forward
    # Numbers of messages and chunks have one to three bytes.
    assert abs(batch.up(lora) / counted - 1) < 1e-3
    assert batch.up(lora) > batch.up(PROFILES["hspa"]) == batch.wire > batch.bodies


def test_repairs_count_in_both_directions(squeezenet: Network) -> None:
    simulated = device(squeezenet, 1e-3)
    x = squeezenet.quantize_images(images(4))
    batch = chain.chained(simulated, simulated.engine, x, 0, settle=False, exact=True)
    assert batch.round_trips == len(batch.requests) == len(batch.answers) > 0
    assert batch.repair_up > sum(batch.answers)
    assert batch.down(PROFILES["lora"]) >= batch.repair_down > sum(batch.requests)
    assert batch.up() == sum(batch.segments_up()) + batch.repair_up
    assert batch.repair_s > 0


def test_a_step_of_training_sends_under_five_per_cent_of_the_model(squeezenet: Network) -> None:
    simulated = device(squeezenet, 1e-5)
    x = squeezenet.quantize_images(images(4))
    outputs = chain.chained(simulated, simulated.engine, x, 0).outputs
    step = iteration.update(squeezenet, simulated.engine, x, outputs, np.arange(4))
    assert 0 < step.delta < 0.05 * step.whole
    assert min(step.backward_s, step.quantise_s, step.encode_s, step.decode_s) > 0
    assert iteration.model_wire(step.delta) > step.delta
