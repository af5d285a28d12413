"""The figures' arithmetic, on costs that are easy to check by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import numpy as np
import pytest

from accelsim import timing
from accelsim.accelerators import Simulated
from accelsim.faults import Rates
from accelsim.int8.network import Network, UInt8
from broker.link import Profile
from experiments import fig6_time, fig7_bytes, iteration, wire_cost
from experiments.common import chain
from experiments.common.networks import int8_network
from experiments.wire_cost import BERS, LINKS, Cost, Method, Stages

METHODS: tuple[Method, ...] = ("drm", "aprm80", "aprm60", "aprm50", "lossless", "jpeg", "known")


def cost(network: str, ber: float, link: str, method: Method) -> Cost:
    """Direct takes 100 s and 1000 bytes, the paper's method half of that, ours 4 and 2 %."""
    part = {"drm": 1.0, "lossless": 0.04, "jpeg": 0.02, "known": 0.01}.get(method, 0.5)
    stages = Stages(
        forward=10 * part,
        tmr=0,
        increment=0,
        coding=0,
        uplink=80 * part,
        backward=10 * part,
        downlink=0,
        overlapped=90 * part,
    )
    return Cost(
        network=network,
        random_weights=network == "A",
        ber=ber,
        link=link,
        method=method,
        layers_bytes=int(900 * part),
        input_bytes=int(100 * part),
        model_bytes=10,
        bound_bytes=1.0,
        mismatched_share=0.0,
        round_trips=0,
        referee_share=0.0,
        executions=3.0,
        layers_direct=0,
        stages=stages,
    )


COSTS = [cost(n, ber, link, method) for n in ("A", "B") for ber in BERS for link in LINKS for method in METHODS]


def test_reductions_are_shares_of_directs_time() -> None:
    found = fig6_time.reductions(COSTS, ("hspa",))
    assert found["APRM-60%"][1e-5] == pytest.approx(0.5)
    assert found["ours"][1e-4] == pytest.approx(0.96)
    assert found["ours, JPEG 95, overlapped"][1e-6] == pytest.approx(0.982)
    assert found["ours, samples known"][1e-6] == pytest.approx(0.99)


def test_ratios_are_shares_of_directs_bytes() -> None:
    found = fig7_bytes.ratios(COSTS)
    assert found["A", 1e-5, "aprm80"] == (0.5, 0.5)
    assert found["B", 1e-6, "lossless"] == (0.04, 0.04)


@pytest.mark.parametrize(("module", "name"), [(fig6_time, "fig6_time"), (fig7_bytes, "fig7_bytes")])
def test_figures_are_written(module: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = tmp_path / "measured.json"
    measured.write_bytes(msgspec.json.encode(COSTS))
    assert wire_cost.load(measured) == COSTS
    monkeypatch.setattr("sys.argv", [name, "--measured", str(measured), "--out", str(tmp_path)])
    module.main()  # type: ignore[attr-defined]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / f"{name}.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= len(BERS) * 2 * len(METHODS)


@pytest.fixture(scope="module")
def images() -> UInt8:
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def network(images: UInt8) -> Network:
    return int8_network("resnet20", None, images)


def test_stages_of_a_network_by_hand(network: Network) -> None:
    """Two layers in one message: nothing overlaps but the images and what the device does meanwhile."""
    convs = [index for index, _ in network.convs()][:2]
    layers = [
        chain.Sent(i, 4 * 32 * 32 * 16, bytes(100), 1, executions=2, referee_s=0.25, encode_s=0.5, decode_s=2.0, rebuild_s=1.0)
        for i in convs
    ]
    batch = chain.Batch(images=4, layers=layers)
    link = Profile("slow", 8e3, 80e3)
    inputs = wire_cost._Images(0, before_s=1.0, encode_s=2.0, decode_s=4.0)
    step = iteration.Update(delta=0, whole=0, backward_s=10.0, quantise_s=1.0, encode_s=3.0, decode_s=5.0)
    stages = wire_cost._stages(network, batch, "jpeg", link, inputs, 100_000, 10_000, step)
    slower = wire_cost.DEVICE_SLOWER
    assert stages.coding == pytest.approx(slower * (1 + 2 + 2 * 0.5 + 5) + 4 + 2 * (2 + 1) + 3)
    assert stages.uplink == pytest.approx((100_000 + batch.up(link)) / 1e3)
    assert stages.downlink == pytest.approx(1.0)
    assert stages.backward == 11.0
    once = sum(
        timing.layer_seconds(network.layers[i], network.shape_of(network.layers[i].inputs[0]), wire_cost.ARRAY, batch=4)
        + timing.write_back_seconds(network.layers[i], wire_cost.ARRAY, batch=4)
        for i in convs
    )
    votes = 2 * timing.vote_seconds(4 * 32 * 32 * 16, 2, wire_cost.ARRAY)
    assert stages.forward == pytest.approx(once)
    assert stages.tmr == pytest.approx(once + votes + 0.5)
    # The images have passed in second 118. Before the server has decoded them, the outputs have passed too.
    ready = slower * (1 + 2) + 100 + 4
    assert batch.up(link) / 1e3 < 4
    after = 2 * 3 + 11 + 3 + slower * 5 + 1
    assert stages.overlapped == pytest.approx(ready + after)


def test_a_threshold_mixes_the_batches_that_a_run_of_its_own_would_send(network: Network, images: UInt8) -> None:
    device = Simulated(Rates.uniform(1e-4), seed=1)
    device.load(network)
    x = network.quantize_images(images)
    under = frozenset(index for index, _ in list(network.convs())[5:])
    whole = chain.golden(device, device.engine, x, 1, direct_layers=under, redundancy="layer")
    increments = chain.golden(device, device.engine, x, 1, direct_layers=frozenset(), redundancy="layer")
    mixed = wire_cost._mixed(increments, chain.direct(device, x, 1), under)
    for one, other in zip(mixed.layers, whole.layers, strict=True):
        assert (one.index, one.body, one.digest, one.executions) == (other.index, other.body, other.digest, other.executions)
        assert one.mismatched == other.mismatched
    assert mixed.up() == whole.up() != increments.up()


def test_overlapping_stages_take_as_long_as_the_slowest_and_the_way_to_it() -> None:
    # Device 1 s a layer, link 3 s, server 1 s: the link is busy from second 1 to 10.
    assert wire_cost._pipelined([1, 1, 1], [3, 3, 3], [1, 1, 1]) == 11
    assert wire_cost._pipelined([5, 5], [1, 1], [0, 0]) == 11
    assert wire_cost._pipelined([0.0], [0.0], [0.0]) == 0
