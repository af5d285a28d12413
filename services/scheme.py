"""How a device runs the layers of an iteration and what it sends of them: told by ``r2f``, carried by ``down/mode``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Codec = Literal["direct", "golden", "chained"]
Vote = Literal["bitwise", "median"]
Redundancy = Literal["layer", "network"]
"""Of the golden codec's reference: the vote of a layer feeds the next one, or each of three runs goes on by itself."""

SEGMENT_BYTES = 512 * 1024
"""Outputs that the agent gathers before they go out. Small layers share a message, large ones stream one by one: the bus
costs a fixed time a message, the link and the server gain by starting early."""


class Scheme(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How a device runs the layers and what it sends of them."""

    codec: Codec = "chained"
    vote: Vote = "median"
    replicas: Literal[3, 5, 7] = 3
    """Executions of each layer for the vote, where no referee chooses."""
    referee: bool = True
    """Of the chained codec: run layers as often as they need, and settle what stays open on the reliable processor
    (see ``services.edge_agent.core.referee``); ``replicas`` is not looked at then."""
    uplink_bits_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Of the device's link, 0 where not known: the referee leaves to the link what that does sooner, and assumes HSPA else."""
    exact: bool = True
    """Of the chained codec: the server asks for what its digests say it has wrong, until its tensors are the device's."""
    theta: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Of the golden codec: a layer of which a smaller share of outputs equals the vote goes direct (the paper's threshold)."""
    redundancy: Redundancy = "layer"
    """Of the golden codec: layer-wise or network-wise TMR as the reference (section V.C of the paper)."""
    jpeg: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """Quality of the JPEG files that the device's camera gives and the device itself runs on; 0 for images as they are."""
    float_inputs: bool = False
    """Images cross the link as float32, each time they are used, as in the paper."""
    protected: tuple[int, ...] = ()
    """Layers that run three times and whose vote goes on (section V.B of the paper)."""


CHAINED = Scheme()
"""Chained increments, the referee, exact: what R2F is for."""
