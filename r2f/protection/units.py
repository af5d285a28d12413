"""What can be protected, and what it costs: a layer that runs three times, or one of its tensors voted on where it is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from accelsim.faults import Site
from accelsim.int8.network import Network
from accelsim.timing import Array, layer_cycles, port_seconds
from r2f.protection.words import Cost, Grain
from services.scheme import Port, Scheme

SITES: Final[tuple[Site, ...]] = ("weight", "input", "output")
"""Whose tensors pass a port."""


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """A MAC layer in TMR where ``site`` is empty, else that tensor of it, held three times and voted on where it is read."""

    layer: int
    site: Site | Literal[""] = ""


def units(network: Network, grain: Grain) -> list[Unit]:
    """All there are, by layer."""
    sites: tuple[Site | Literal[""], ...] = ("",) if grain == "layers" else ("", *SITES)
    return [Unit(index, site) for index, _ in network.convs() for site in sites]


def costs(network: Network, units: Iterable[Unit], array: Array, batch: int, cost: Cost) -> dict[Unit, float]:
    """What each unit adds, as a share of one unprotected run of all MAC layers: O_i of Algorithm 1; 2 is TMR of everything.

    ``cycles`` are modelled; a port's are those of the memory's traffic on a batch (``accelsim.timing.port_seconds``). Voting
    itself is not counted, as in the paper. ``macs`` knows no ports: raises ValueError where there are any.
    """
    work: dict[int, float] = {}
    for index, layer in network.convs():
        shape = network.shape_of(layer.inputs[0])
        macs = layer.weight[0].size * math.prod(layer.shape)
        work[index] = float(macs if cost == "macs" else layer_cycles(layer, shape, array))
    total = sum(work.values())
    convs = dict(network.convs())
    found = {}
    for unit in units:
        if not unit.site:
            found[unit] = 2 * work[unit.layer] / total
            continue
        if cost == "macs":
            raise ValueError("cost macs: ports multiply nothing; take units layers, or cost cycles")
        layer = convs[unit.layer]
        seconds = port_seconds(layer, network.shape_of(layer.inputs[0]), array, unit.site, batch=batch)
        found[unit] = seconds * array.clock_hz / batch / total
    return found


def overhead(chosen: Collection[Unit], costs: Mapping[Unit, float]) -> float:
    """Share of cycles that protecting these adds."""
    return sum(costs[unit] for unit in chosen)


def scheme_of(chosen: Collection[Unit], base: Scheme) -> Scheme:
    """``base`` with just these protected. The ports of a layer that is in TMR itself are left out."""
    layers = tuple(sorted(unit.layer for unit in chosen if not unit.site))
    ports = tuple(Port(unit.layer, unit.site) for unit in sorted(chosen) if unit.site and unit.layer not in layers)
    return msgspec.structs.replace(base.bare, protected=layers, ports=ports)
