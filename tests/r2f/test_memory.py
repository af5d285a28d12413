"""From the device's memory to the bounds of its services."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.int8.network import INPUT, Network
from accelsim.lowering import lower
from r2f import memory


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return lower(zoo.build("resnet20", 10).eval(), images, (0.5,) * 3, (0.25,) * 3, name="resnet20")


@pytest.mark.parametrize("device_mb", [512, 1024, 4096])
@pytest.mark.parametrize("batch", [1, 64])
def test_shares_add_up_to_no_more_than_there_is(network: Network, device_mb: int, batch: int) -> None:
    found = memory.shares(device_mb, network, batch, data_bytes=50 << 20)
    largest = batch * max(math.prod(layer.shape) for _, layer in network.convs())
    executions = 7 * largest >> 20
    assert memory.PROCESSES_MB + 50 + executions + found.agent + found.voter + found.codec + found.keep <= device_mb
    assert min(found.agent, found.voter, found.codec, found.keep) > 0
    assert 4 * largest < found.agent << 20
    assert 2 * largest <= found.voter << 20


def test_a_batch_that_cannot_fit_says_what_it_needs(network: Network) -> None:
    with pytest.raises(ValueError, match=r"resnet20: batches of 4096 need (\d+) MB on the device, it has 512") as raised:
        memory.shares(512, network, 4096, 0)
    needed = int(str(raised.value).split(" need ")[1].split()[0])
    memory.shares(needed, network, 4096, 0)
    with pytest.raises(ValueError, match="lower --batch or raise --device-memory-mb"):
        memory.shares(needed - 2, network, 4096, 0)


def test_live_bytes_are_those_of_a_walk_that_drops_what_is_not_read_again(network: Network) -> None:
    most = 0
    for index in range(len(network.layers)):
        read = {i for later in network.layers[index:] for i in later.inputs if i < index} | {index}
        most = max(most, sum(math.prod(network.input_shape if i == INPUT else network.layers[i].shape) for i in read))
    assert memory.live_bytes(network) == most
