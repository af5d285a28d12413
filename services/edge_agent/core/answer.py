"""A pass in inference: the network once, or in TMR, for all images or for those of which one run is not certain."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from accelsim.accelerators import Accelerator
from accelsim.engine import Engine
from accelsim.int8.network import Activation, Network
from services.edge_agent.core.forward import Executed, Segment, Votes, execute
from services.edge_agent.core.plan import Plan, plan_of
from services.scheme import Scheme

Steps = Generator[Segment, Votes | None, Activation]

RUNS: Final = 3
"""Of the network in network-wise TMR."""


def answer(network: Network, engine: Engine, accelerator: Accelerator, x: Activation, iteration: int, scheme: Scheme) -> Steps:
    """The network's outputs (N, 1, 1, C) for x (N, H, W, C), as ``forward.execute`` yields and wants them.

    Layer-wise, every layer runs three times and its vote feeds the next one; network-wise the network runs three times and
    the vote is over its outputs (section V.C of the paper). With ``scheme.uncertain`` all images run once, and then those
    again whose two largest outputs are close: three times layer-wise, twice network-wise. Raises ValueError where outputs
    are no vector of two classes or more, of which a margin could be told.
    """
    plan = plan_of(scheme, training=False)
    match scheme.tmr, scheme.uncertain:
        case None, _:
            return (yield from execute(network, engine, accelerator, x, iteration, plan))
        case "layer", 0:
            return (yield from execute(network, engine, accelerator, x, iteration, _all(network, plan)))
    outputs = yield from execute(network, engine, accelerator, x, iteration, plan)
    chosen = np.arange(len(x)) if scheme.uncertain == 0 else np.flatnonzero(margins(outputs) < scheme.uncertain)
    if not len(chosen):
        return outputs
    again = np.ascontiguousarray(x[chosen])
    if scheme.tmr == "layer":
        better = yield from _again(network, engine, accelerator, again, iteration, _all(network, plan), 1)
    else:
        runs = [outputs[chosen]]
        for run in range(1, RUNS):
            runs.append((yield from _again(network, engine, accelerator, again, iteration, plan, run)))
        last = len(network.layers) - 1
        votes = yield Segment([Executed(last, runs, protected=True, ran=False)], awaits_vote=True)
        if votes is None:
            raise RuntimeError("network-wise TMR awaits the vote over its outputs, but none was sent")
        better = votes[last]
    mended = outputs.copy()
    mended[chosen] = better
    return mended


def margins(outputs: Activation) -> npt.NDArray[np.int32]:
    """How far apart the two largest outputs are, for each image of (N, 1, 1, C); int32 (N,), in steps of the outputs' scale."""
    if outputs.shape[1:3] != (1, 1) or outputs.shape[3] < 2:
        raise ValueError(f"outputs of shape {outputs.shape[1:]} have no margin; a vector of two classes or more has")
    rows = np.partition(outputs.reshape(len(outputs), -1).astype(np.int32), -2, axis=1)
    return rows[:, -1] - rows[:, -2]


def _all(network: Network, plan: Plan) -> Plan:
    return replace(plan, protected=frozenset(index for index, _ in network.convs()))


def _again(
    network: Network, engine: Engine, accelerator: Accelerator, x: Activation, iteration: int, plan: Plan, run: int
) -> Steps:  # fmt: skip
    """A further run, with faults of its own."""
    return (yield from execute(network, engine, accelerator, x, iteration, replace(plan, run=run)))
