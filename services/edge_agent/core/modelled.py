"""The time of what a device ran, by the model or by its own clock, for the timing events (architecture.md, "Time")."""

from __future__ import annotations

import math
from typing import NamedTuple

from accelsim.accelerators import Ports
from accelsim.int8.network import Conv, Network
from accelsim.timing import Array, layer_timing, port_seconds, vote_seconds
from services.edge_agent.core import referee
from services.edge_agent.core.forward import Executed, Segment


class Times(NamedTuple):
    """Seconds of a segment. Host time of its executions, all computed at once, is the actual ones' by ``share`` (0 to 1)."""

    forward: float
    """The actual executions on the accelerator (FP)."""
    tmr: float
    """All further executions, and the referee."""
    share: float


def times(network: Network, segment: Segment, array: Array, ports: Ports, measured: float | None = None) -> Times:
    """Seconds of a segment, as long as its executions are still there. ``ports`` are voted on.

    ``measured`` is what the accelerator's own clock says of all executions; votes and the referee are modelled then, too.
    Raises ValueError where that is no time.
    """
    if measured is not None and not 0 <= measured < math.inf:
        raise ValueError(f"accelerator: its clock says that a segment took {measured} s")
    forward = tmr = processor = 0.0
    votes = 0.0
    executions = actual = 0
    for executed in segment.layers:
        replica = executed.replicas[0]
        if not executed.ran:
            processor += vote_seconds(replica.size, len(executed.replicas), array)
            continue
        layer = network.layers[executed.index]
        if not isinstance(layer, Conv):
            raise ValueError(f"layer {executed.index} ({layer.name}) is no MAC layer, the accelerator cannot have run it")
        shape = network.shape_of(layer.inputs[0])
        timing = layer_timing(executed.index, layer, shape, array, batch=len(replica), executions=executed.executions)
        first = timing.forward_s + timing.write_back_s
        voting = sum(port_seconds(layer, shape, array, site, batch=len(replica)) for site in ports.get(executed.index, ()))
        forward += 0.0 if executed.again else first
        tmr += timing.tmr_s + voting * executed.executions + (first if executed.again else 0.0)
        processor += _referee_s(layer, executed)
        votes += vote_seconds(replica.size, executed.executions, array) if executed.executions > 1 else 0.0
        executions += executed.executions
        actual += not executed.again
    share = actual / executions if executions else 0.0
    if measured is not None:
        return Times(measured * share, measured * (1 - share) + processor + votes, share)
    return Times(forward, tmr + processor, share)


def _referee_s(layer: Conv, executed: Executed) -> float:
    return 0.0 if executed.settled is None else referee.seconds(executed.settled, layer.weight[0].size)
