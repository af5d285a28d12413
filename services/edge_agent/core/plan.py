"""How often a device runs each MAC layer, from what the server told it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from accelsim.accelerators import Ports
from accelsim.faults import Site
from services.edge_agent.core.referee import SHORT, short
from services.scheme import Redundancy, Scheme


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each MAC layer runs.

    ``replicas``: executions of each layer on its actual input (1 for the direct codec, 3 or more for chained).
    ``protected``: layers whose vote over three runs goes on (section V.B). ``beside``: beside the actual pass run a
    TMR pass of ``replicas`` executions (section V.C), whose votes are the reference of the increments. Layer-wise the vote
    goes on to its next layer, network-wise each of its runs goes on with its own outputs and waits for no vote.
    ``referee``: as many executions as the layer needs, in place of ``replicas`` (see ``core.referee``), ``longest`` MACs
    an output being what ``referee.short`` says of the link.
    """

    replicas: int
    protected: frozenset[int] = frozenset()
    beside: Redundancy | None = None
    referee: bool = False
    longest: int = SHORT
    run: int = 0
    """Number of this run of the network on these images: each has faults of its own."""
    direct: frozenset[int] = frozenset()
    """Beside a TMR pass: the layers under the similarity threshold, whose outputs go as they are."""


def plan_of(scheme: Scheme, *, training: bool, direct: frozenset[int] = frozenset()) -> Plan:
    """The plan of a scheme. In inference mode, and where outputs go as they are, layers run once but for protected ones.

    ``direct``: the layers under the threshold (``thresholded``). Raises ValueError for protected layers beside a TMR pass.
    """
    protected = frozenset(scheme.protected)
    reference = scheme.way.reference if training else "none"
    match reference:
        case "none":
            return Plan(replicas=1, protected=protected)
        case "vote":
            longest = short(scheme.uplink_bits_per_s) if scheme.uplink_bits_per_s else SHORT
            return Plan(replicas=scheme.replicas, protected=protected, referee=scheme.referee, longest=longest)
        case "run":
            if protected:
                raise ValueError(f"plan: with codec {scheme.codec} no layers can be protected in training")
            return Plan(replicas=scheme.replicas, beside=scheme.redundancy, direct=direct)
        case _:
            assert_never(reference)


def ports_of(scheme: Scheme) -> Ports:
    """The sites voted on at the accelerator's ports, by layer."""
    ports: dict[int, set[Site]] = {}
    for port in scheme.ports:
        ports.setdefault(port.layer, set()).add(port.site)
    return ports


def thresholded(scheme: Scheme) -> bool:
    """Whether some layers' outputs go as they are because too few of them equal the vote (``forward.similarity``)."""
    return scheme.way.reference == "run" and scheme.theta > 0
