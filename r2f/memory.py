"""What the device's memory is for: from the one number that a user knows to the bounds of its three services.

Fixed costs come first. What is left is for tensors: those under way, those kept for repairs, and the executions that the
agent holds. A service that has used up its share waits for the others, so the bound holds however slow the link is.
"""

from __future__ import annotations

import math

import msgspec

from accelsim.network import INPUT, Network

MB = 1 << 20
PROCESSES_MB = 260
"""Three interpreters with compiled kernels: 52 MB the voter, 87 MB each of the others, and what they hold of messages."""
COPIES = 5
"""Of the network: the agent's, packed for its kernels; the codec's, what it is made from, and on its way to the agent."""
EXECUTIONS = 7
"""The most that a layer gets (``accelsim.referee``)."""
SETTLED = 1.25
"""Bytes an output of what the referee says at most: value and position of a quarter of them."""


class Shares(msgspec.Struct, frozen=True):
    """Bounds in MiB: ``agent`` for its executions and again for its tensors under way, ``voter`` and ``codec`` for theirs,
    ``keep`` for what the codec keeps for repairs."""

    agent: int
    voter: int
    codec: int
    keep: int


def shares(device_mb: int, network: Network, batch: int, data_bytes: int) -> Shares:
    """Shares of ``device_mb`` for retraining ``network`` with batches of ``batch`` images and so large a data set.

    Raises ValueError where that many images cannot be run; the message says how much they need.
    """
    fixed = PROCESSES_MB + (data_bytes + COPIES * _weights(network)) / MB
    largest = max(math.prod(layer.shape) for _, layer in network.convs())
    held = live_bytes(network) + EXECUTIONS * largest
    under_way = (EXECUTIONS + SETTLED) * largest
    needed = batch * max(held, under_way) / MB
    # Twice for the agent, a quarter each for voter, codec and what the agent may use again; the rest is for what is on
    # its way from one form to another.
    agent = (device_mb - fixed) / 4
    if agent < needed:
        raise ValueError(
            f"{network.name}: batches of {batch} need {math.ceil(fixed + 4 * needed)} MB on the device, it has {device_mb}; "
            "lower --batch or raise --device-memory-mb"
        )
    quarter = max(1, int(agent / 4))
    return Shares(agent=int(agent), voter=quarter, codec=16 + 2 * math.ceil(_weights(network) / MB), keep=quarter)


def live_bytes(network: Network) -> int:
    """The most that activations of one image take at once, if each goes when its last reader is done."""
    last = {operand: index for index, layer in enumerate(network.layers) for operand in layer.inputs}
    live = {INPUT: math.prod(network.input_shape)}
    most = 0
    for index, layer in enumerate(network.layers):
        live[index] = math.prod(layer.shape)
        most = max(most, sum(live.values()))
        live = {operand: size for operand, size in live.items() if last.get(operand, -1) > index}
    return most


def _weights(network: Network) -> int:
    return sum(layer.weight.nbytes for _, layer in network.convs())
