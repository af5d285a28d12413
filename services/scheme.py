"""How a device runs the layers of an iteration and what it sends of them: told by ``r2f``, carried by ``down/mode``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from accelsim.faults import Site
from accelsim.int8.network import Network

Codec = Literal["direct", "golden", "chained"]
Vote = Literal["bitwise", "median"]
Redundancy = Literal["layer", "network"]
"""Of the golden codec's reference: the vote of a layer feeds the next one, or each of three runs goes on by itself."""
Reference = Literal["none", "vote", "run"]
"""What the increments of a layer are against, and so what the device runs and what the server predicts the layer from.

``none``: there are no increments, layers run once. ``vote``: over executions on the actual input; the server computes the
layer from what it rebuilt of that input, and can have mended what it has wrong. ``run``: the votes of a TMR run beside the
actual one; the server computes the layer from the batch alone, and has wrong what the votes had.
"""
Coding = Literal["raw", "zstd", "increments, entropy", "increments, zstd", "increments, LZ4"]
"""A row of ``services.codec.core.codings``."""

SEGMENT_BYTES = 512 * 1024
"""Outputs that the agent gathers before they go out. Small layers share a message, large ones stream one by one: the bus
costs a fixed time a message, the link and the server gain by starting early."""


@dataclass(frozen=True, slots=True)
class Way:
    """All that tells one codec from another. A new codec is a row of ``WAYS``, and its name in ``Codec``."""

    reference: Reference
    outputs: tuple[Coding, ...]
    """For a layer without a reference: the smallest of these is sent."""
    increments: tuple[Coding, ...] = ()
    """For one with a reference: the first where it is small, else the smallest."""
    mixed: bool = False
    """Whether the outputs themselves go where they are smaller than the increments."""


WAYS: Final[dict[Codec, Way]] = {
    "direct": Way(reference="none", outputs=("raw",)),
    "golden": Way(reference="run", outputs=("raw",), increments=("increments, LZ4",)),
    "chained": Way(
        reference="vote",
        outputs=("raw", "zstd"),
        increments=("increments, entropy", "increments, zstd", "increments, LZ4"),
        mixed=True,
    ),
}
"""The paper's DRM, its APRM, and ours."""


class Port(msgspec.Struct, frozen=True, array_like=True):
    """What a voter at one of the accelerator's ports votes on: a tensor of a layer, held three times."""

    layer: int
    site: Site


class Scheme(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How a device runs the layers and what it sends of them."""

    codec: Codec = "chained"
    vote: Vote = "median"
    replicas: Literal[3, 5, 7] = 3
    """Executions of each layer for the vote, where no referee chooses."""
    referee: bool = True
    """Of the chained codec: run layers as often as they need, and settle what stays open on the reliable processor
    (see ``services.edge_agent.core.referee``); ``replicas`` is not looked at then."""
    uplink_bits_per_s: Annotated[float, msgspec.Meta(ge=0, le=1e15)] = 0.0
    """Of the device's link, 0 where not known: the referee leaves to the link what that does sooner, and assumes HSPA else."""
    exact: bool = True
    """Of the chained codec: the server asks for what its digests say it has wrong, until its tensors are the device's."""
    theta: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.6
    """Of the golden codec: a layer of which a smaller share of outputs equals the vote goes direct (the paper's threshold)."""
    redundancy: Redundancy = "layer"
    """Of the golden codec: layer-wise or network-wise TMR as the reference (section V.C of the paper)."""
    jpeg: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    """Quality of the JPEG files that the device's camera gives and the device itself runs on; 0 for images as they are."""
    float_inputs: bool = False
    """Images cross the link as float32, each time they are used, as in the paper."""
    protected: tuple[int, ...] = ()
    """Layers that run three times and whose vote goes on (section V.B of the paper)."""
    ports: tuple[Port, ...] = ()
    """Tensors of layers that are held three times and voted bit by bit where they are read (``accelsim.faults``)."""
    tmr: Redundancy | None = None
    """In inference: the whole network in TMR, layer-wise or network-wise (section V.C of the paper)."""
    uncertain: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    """With ``tmr``: only for images whose two largest outputs, after one run, are fewer than so many int8 steps apart; 0: for
    all."""

    def __post_init__(self) -> None:
        if self.uncertain and self.tmr is None:
            raise ValueError("scheme: uncertain says for which images, and needs tmr: layer or network")

    @property
    def way(self) -> Way:
        """What its codec does."""
        return WAYS[self.codec]

    @property
    def executions(self) -> int:
        """Of each layer in training: 1 where outputs go as they are, 0 where the referee chooses."""
        if self.way.reference == "none":
            return 1
        return 0 if self.referee and self.way.reference == "vote" else self.replicas

    @property
    def bare(self) -> Scheme:
        """The same without protection of any kind."""
        return msgspec.structs.replace(self, protected=(), ports=(), tmr=None, uncertain=0)

    @property
    def repairs(self) -> bool:
        """Whether the server has mended what it has wrong, and the device keeps what that takes."""
        return self.exact and self.way.reference == "vote"


class View(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How the device is to change the images of a batch before it runs them (``services.views``)."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    flip: bool = False
    """Mirror half of them left to right."""
    shift: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    """Move them by up to so many pixels each way."""


KNOWN_BYTES = 1 << 20
"""The longest packed map of permanent faults in a message or a job."""
Known = Annotated[bytes, msgspec.Meta(max_length=KNOWN_BYTES)]


def check(scheme: Scheme, network: Network) -> None:
    """Raises ValueError where protection names what this network does not have."""
    layers = [index for index, _ in network.convs()]
    for index in (*scheme.protected, *(port.layer for port in scheme.ports)):
        if index not in layers:
            known = ", ".join(map(str, layers))
            raise ValueError(f"layer {index} cannot be protected; MAC layers of {network.name} are {known}")
    if scheme.uncertain and (network.layers[-1].shape[:2] != (1, 1) or network.layers[-1].shape[2] < 2):
        raise ValueError(f"uncertain: outputs of {network.name} have shape {network.layers[-1].shape}, no vector of classes")


CHAINED = Scheme()
"""Chained increments, the referee, exact: what R2F is for."""
