"""What the device's memory is for: from the one number that a user knows to the bounds of its three services.

Fixed costs come first. What is left is for tensors: those under way, those kept for repairs, and the executions that the
agent holds. A service that has used up its share waits for the others, so the bound holds however slow the link is.
"""

from __future__ import annotations

import math

import msgspec

from accelsim.int8.network import INPUT, Network
from accelsim.int8.walk import walk
from services.edge_agent.core.referee import HELD, VOTING

MB = 1 << 20
PROCESSES_MB = 300
"""Three interpreters with compiled kernels, 52 MB the voter and 87 MB each of the others, and 32 MB of messages sent that the
codec's may be asked for again; measured, as the next one."""
COPIES = 8
"""Of the network, when a new one comes: the agent's, its bytes, packed for its kernels; the codec's, the one before and what
both are made from, and what is on its way to the agent."""
UNDER_WAY = VOTING + 0.25 * 5
"""Bytes an output that go to the voter at most: its replicas, and value and position (int32) of a quarter of the outputs."""


class Shares(msgspec.Struct, frozen=True):
    """Bounds in MiB: tensors of ``agent``, ``voter`` and ``codec`` under way, and what the codec keeps for repairs."""

    agent: int
    voter: int
    codec: int
    keep: int


def shares(device_mb: int, network: Network, batch: int, data_bytes: int) -> Shares:
    """Shares of ``device_mb`` for retraining ``network`` with batches of ``batch`` images and so large a data set.

    Raises ValueError where that many images cannot be run; the message says how much they need.
    """
    largest = batch * max(math.prod(layer.shape) for _, layer in network.convs()) / MB
    held = batch * live_bytes(network) / MB + HELD * largest
    fixed = PROCESSES_MB + held + data_bytes / MB + COPIES * _weights(network) / MB
    # Room for one layer under way, and for two votes on it, is the least; more lets the services work at the same time.
    least = max(3 * UNDER_WAY * largest, 16 * largest)
    rest = device_mb - fixed
    if rest < least:
        raise ValueError(
            f"{network.name}: batches of {batch} need {math.ceil(fixed + least)} MB on the device, it has {device_mb}; "
            "lower --batch or raise --device-memory-mb"
        )
    # A third of the rest is for what is on its way from one form to another.
    codec = 16 + 2 * math.ceil(_weights(network) / MB)
    return Shares(agent=math.ceil(rest / 3), voter=math.ceil(rest / 8), codec=codec, keep=math.ceil(rest / 6))


def live_bytes(network: Network) -> int:
    """The most that activations of one image take at once, if each goes when its last reader is done."""
    live = {INPUT: math.prod(network.input_shape)}
    most = 0
    for index, layer, _ in walk(network, live):
        live[index] = math.prod(layer.shape)
        most = max(most, sum(live.values()))
    return most


def _weights(network: Network) -> int:
    return sum(layer.weight.nbytes for _, layer in network.convs())
