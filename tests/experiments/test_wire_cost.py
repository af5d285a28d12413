"""The measurement behind figures 6 and 7, on a small network."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from accelsim.accelerators import Simulated
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network, UInt8
from broker.link import PROFILES
from experiments import wire_cost
from experiments.common import chain, iteration
from experiments.common.costs import BERS, LINKS, METHODS, Cost, Stages, load
from experiments.common.networks import int8_network
from services.codec.core import inputs


@pytest.fixture(scope="module")
def images() -> UInt8:
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def network(images: UInt8) -> Network:
    return int8_network("resnet20", None, images)


@pytest.fixture(scope="module")
def measured(network: Network, images: UInt8) -> dict[tuple[str, str], Cost]:
    found = wire_cost.measure(network, "small", True, images, 1e-4, warm=False)
    assert {(c.network, c.random_weights, c.ber) for c in found} == {("small", True, 1e-4)}
    return {(c.method, c.link): c for c in found}


def test_every_method_over_every_link(measured: dict[tuple[str, str], Cost]) -> None:
    assert set(measured) == {(method, link) for method in METHODS for link in LINKS}


def test_bytes_are_those_of_the_messages(measured: dict[tuple[str, str], Cost], network: Network, images: UInt8) -> None:
    device = Simulated(Rates.uniform(1e-4), seed=1)
    device.load(network)
    x = network.quantize_images(images)
    raw = 4 * sum(int(np.prod(layer.shape)) for _, layer in network.convs())
    step = iteration.update(network, device.engine, x, dict(enumerate(device.run(x, iteration=1))), np.arange(4))
    whole = len(storage.to_bytes(network))
    for link in LINKS:
        profile = PROFILES[link]
        drm, lossless, jpeg, known = (measured[method, link] for method in ("drm", "lossless", "jpeg", "known"))
        assert drm.layers_bytes == chain.direct(device, x, 1).up(profile) > raw
        exact = chain.chained(device, device.engine, x, 1, exact=True, longest=wire_cost.referee.short(profile.up))
        assert lossless.layers_bytes == known.layers_bytes == exact.up(profile) < raw
        assert drm.input_bytes == iteration.inputs_wire(4 * images.size, 4, profile)
        assert lossless.input_bytes == iteration.inputs_wire(len(inputs.encode(images)), 4, profile)
        assert jpeg.input_bytes == iteration.inputs_wire(len(inputs.lossy(images, 95)[0]), 4, profile)
        assert known.input_bytes == iteration.inputs_wire(0, 4, profile, known=True) < 500
        assert drm.model_bytes == iteration.model_wire(whole, profile) > whole > 10 * lossless.model_bytes
        assert lossless.model_bytes == iteration.model_wire(step.delta, profile)
        assert drm.stages.uplink == pytest.approx((drm.layers_bytes + drm.input_bytes) * 8 / profile.up)
        assert drm.stages.downlink == pytest.approx(drm.model_bytes * 8 / profile.down)


def test_what_is_said_beside_the_bytes(measured: dict[tuple[str, str], Cost], network: Network) -> None:
    drm, lossless, aprm = (measured[method, "hspa"] for method in ("drm", "lossless", "aprm60"))
    assert (drm.executions, drm.referee_share, drm.mismatched_share, drm.round_trips) == (1, 0, 0, 0)
    assert drm.layers_direct == len(list(network.convs()))
    assert lossless.mismatched_share == 0 < aprm.mismatched_share
    assert lossless.executions > 1
    assert 0 < lossless.referee_share < 1
    assert aprm.executions == 4
    assert drm.stages.tmr == drm.stages.increment == 0 < lossless.stages.tmr
    assert drm.stages.forward == pytest.approx(lossless.stages.forward)


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


def test_the_file_holds_whole_networks(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second network, it is left with the first one, at every rate."""
    calls: list[tuple[str, float]] = []

    def measure(network: Network, name: str, random: bool, images: UInt8, ber: float, warm: bool) -> list[Cost]:
        calls.append((name, ber))
        assert warm == (ber == BERS[0])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return [msgspec.structs.replace(c, network=name) for c in given if c.ber == ber]

    given = [
        Cost(
            network="", random_weights=True, ber=ber, link=link, method=method, layers_bytes=1, input_bytes=1, model_bytes=1,
            bound_bytes=1, mismatched_share=0, round_trips=0, referee_share=0, executions=1, layers_direct=0,
            stages=ones(),
        )
        for ber in BERS for link in LINKS for method in METHODS
    ]  # fmt: skip
    monkeypatch.setattr(wire_cost, "measure", measure)
    monkeypatch.setattr(wire_cost, "photos", lambda shared: np.zeros((200, 2, 2, 3), np.uint8))
    monkeypatch.setattr(wire_cost, "stored", lambda *where: network)
    out = tmp_path / "below" / "costs.json"
    chosen = ["resnet18", "squeezenet1_1"]
    monkeypatch.setattr(sys, "argv", ["wire_cost", "--out", str(out), "--network", *chosen])
    with pytest.raises(KeyboardInterrupt):
        wire_cost.main()
    assert [name for name, _ in calls] == ["ResNet18"] * 3 + ["SqueezeNet"] * 2
    assert {c.network for c in load(out)} == {"ResNet18"}


def ones() -> Stages:
    return Stages(forward=1, tmr=1, increment=1, coding=1, uplink=1, backward=1, downlink=1, overlapped=1)
