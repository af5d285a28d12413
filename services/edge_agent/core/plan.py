"""How often a device runs each MAC layer, from what the server told it."""

from __future__ import annotations

from dataclasses import dataclass

from services.edge_agent.core.referee import SHORT, short
from services.scheme import Redundancy, Scheme


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each MAC layer runs.

    ``replicas``: executions of each layer on its actual input (1 for the direct codec, 3 or more for chained).
    ``protected``: layers whose vote over three runs goes on (section V.B). ``golden``: beside the actual pass run a
    TMR pass of ``replicas`` executions (section V.C), whose votes are the reference of the increments. Layer-wise the vote
    goes on to its next layer, network-wise each of its runs goes on with its own outputs and waits for no vote.
    ``referee``: as many executions as the layer needs, in place of ``replicas`` (see ``core.referee``), ``longest`` MACs
    an output being what ``referee.short`` says of the link.
    """

    replicas: int
    protected: frozenset[int] = frozenset()
    golden: Redundancy | None = None
    referee: bool = False
    longest: int = SHORT
    direct: frozenset[int] = frozenset()
    """Of the golden codec: the layers under the similarity threshold."""


def plan_of(scheme: Scheme, *, training: bool, direct: frozenset[int] = frozenset()) -> Plan:
    """The plan of a scheme. In inference mode, and where outputs go as they are, layers run once but for protected ones.

    ``direct``: the golden codec's layers under its threshold.
    """
    protected = frozenset(scheme.protected)
    if not training or scheme.codec == "direct":
        return Plan(replicas=1, protected=protected)
    golden = scheme.codec == "golden"
    return Plan(
        replicas=scheme.replicas,
        protected=protected,
        golden=scheme.redundancy if golden else None,
        referee=scheme.referee and not golden,
        longest=short(scheme.uplink_bits_per_s) if scheme.uplink_bits_per_s else SHORT,
        direct=direct,
    )
