"""What an iteration costs, by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from accelsim import timing
from accelsim.int8.network import Network, UInt8
from broker.link import Profile
from experiments.common import chain, iteration
from experiments.common import costs as module
from experiments.common.command import InputError
from experiments.common.costs import Cost
from experiments.common.networks import int8_network


@pytest.fixture(scope="module")
def network() -> Network:
    images: UInt8 = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
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
    inputs = module.Images(0, before_s=1.0, encode_s=2.0, decode_s=4.0)
    step = iteration.Update(delta=0, whole=0, backward_s=10.0, quantise_s=1.0, encode_s=3.0, decode_s=5.0)
    stages = module.stages(network, batch, "jpeg", link, inputs, 100_000, 10_000, step)
    slower = module.DEVICE_SLOWER
    assert stages.coding == pytest.approx(slower * (1 + 2 + 2 * 0.5 + 5) + 4 + 2 * (2 + 1) + 3)
    assert stages.uplink == pytest.approx((100_000 + batch.up(link)) / 1e3)
    assert stages.downlink == pytest.approx(1.0)
    assert stages.backward == 11.0
    once = sum(
        timing.layer_seconds(network.layers[i], network.shape_of(network.layers[i].inputs[0]), module.ARRAY, batch=4)
        + timing.write_back_seconds(network.layers[i], module.ARRAY, batch=4)
        for i in convs
    )
    votes = 2 * timing.vote_seconds(4 * 32 * 32 * 16, 2, module.ARRAY)
    assert stages.forward == pytest.approx(once)
    assert stages.tmr == pytest.approx(once + votes + 0.5)
    # The images have passed in second 118. Before the server has decoded them, the outputs have passed too.
    ready = slower * (1 + 2) + 100 + 4
    assert batch.up(link) / 1e3 < 4
    after = 2 * 3 + 11 + 3 + slower * 5 + 1
    assert stages.overlapped == pytest.approx(ready + after)
    parts = (stages.forward, stages.tmr, stages.increment, stages.coding, stages.uplink, stages.backward, stages.downlink)
    assert stages.total() == pytest.approx(sum(parts))


def test_overlapping_stages_take_as_long_as_the_slowest_and_the_way_to_it() -> None:
    # Device 1 s a layer, link 3 s, server 1 s: the link is busy from second 1 to 10.
    assert module.pipelined([1, 1, 1], [3, 3, 3], [1, 1, 1]) == 11
    assert module.pipelined([5, 5], [1, 1], [0, 0]) == 11
    assert module.pipelined([0.0], [0.0], [0.0]) == 0


def test_a_file_is_read_whole(costs: list[Cost], tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(msgspec.json.encode(costs))
    assert module.load(path) == costs
    assert module.networks(costs) == ["A", "B"]


def test_a_network_that_is_there_in_part_is_told(costs: list[Cost], tmp_path: Path) -> None:
    """An average over what is there would be over other networks at each rate."""
    path = tmp_path / "costs.json"
    path.write_bytes(msgspec.json.encode([c for c in costs if (c.network, c.ber, c.link) != ("B", 1e-5, "lora")]))
    with pytest.raises(InputError, match=r"costs.json: B at 1e-05 over lora by drm is missing; measure again"):
        module.load(path)


@pytest.mark.parametrize(
    ("content", "says"), [(b"{}", "not what experiments.wire_cost writes"), (b"[]", "nothing was measured")]
)
def test_a_file_of_something_else_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "costs.json").write_bytes(content)
    with pytest.raises(InputError, match=f"costs.json: {says}"):
        module.load(tmp_path / "costs.json")
    with pytest.raises(InputError, match=r"absent.json: not found; python -m experiments.wire_cost measures it"):
        module.load(tmp_path / "absent.json")
