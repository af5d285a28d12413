"""The topics of the bus, ``r2f/v1/{device}/{plane}/{name}``, and which message travels on which (architecture.md, "The bus").

``TABLE`` is the whole contract: a message of another type on a topic is rejected by ``wire.decode``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from services.bus import messages
from services.bus.messages import ROOT, Message
from services.devices import LEVEL

PLANES = ("down", "up", "edge", "server", "state", "event")
LINK_PLANES = frozenset({"down", "up", "state", "event"})
"""What a bridge forwards between the two hosts; tensors by reference cannot go there."""

ANSWERS = {"down": "up", "up": "down", "edge": "edge", "server": "server"}
"""The plane on which a receiver talks back to a sender (``flow``: credits and requests to send again)."""

FLOW = "flow"

TABLE: dict[str, type[Message]] = {
    "down/mode": messages.SetMode,
    "down/forward": messages.Forward,
    "down/model": messages.EncodedModel,
    "down/repair": messages.Repair,
    "down/rebuilt": messages.Rebuilt,
    "down/forgotten": messages.Forgotten,
    "edge/inputs": messages.Inputs,
    "edge/replicas": messages.Replicas,
    "edge/voted": messages.Voted,
    "edge/model": messages.Deploy,
    "up/inputs": messages.EncodedInputs,
    "up/layers": messages.EncodedLayers,
    "up/repair": messages.EncodedRepair,
    "up/ack": messages.Ack,
    "up/outputs": messages.Outputs,
    "server/inputs": messages.Inputs,
    "server/activations": messages.Activations,
    "server/model": messages.Deploy,
    "server/stop": messages.Stop,
    "state/claim": messages.Claim,
    "event/progress": messages.Progress,
    "event/iteration": messages.Iteration,
    "event/votes": messages.Votes,
    "event/memory": messages.Memory,
    "event/dropped": messages.Dropped,
    "event/stopping": messages.Stopping,
    "down/flow": messages.Flow,
    "up/flow": messages.Flow,
    "edge/flow": messages.Flow,
    "server/flow": messages.Flow,
}
"""``plane/name`` to message type; any other ``state/{service}`` is State, and any other ``event/{stage}`` Timing."""

CLAIM = "state/claim"

SENDERS: dict[str, tuple[str, ...]] = {
    "down/mode": ("trainer",),
    "down/forward": ("trainer",),
    "down/model": ("codec-server",),
    "down/repair": ("codec-server",),
    "down/rebuilt": ("codec-server",),
    "down/forgotten": ("codec-server",),
    "edge/inputs": ("agent",),
    "edge/replicas": ("agent",),
    "edge/voted": ("voter",),
    "edge/model": ("codec-device",),
    "up/inputs": ("codec-device",),
    "up/layers": ("codec-device",),
    "up/repair": ("codec-device",),
    "up/ack": ("agent", "codec-device"),
    "up/outputs": ("agent",),
    "server/inputs": ("codec-server",),
    "server/activations": ("codec-server",),
    "server/model": ("trainer",),
    "server/stop": (),
}
"""``plane/name`` to the services that send there; a numbered message of another process than those is dropped. Where there are
none, whoever may write there sends."""

RECEIVERS: dict[str, tuple[str, ...]] = {
    "down/mode": ("agent", "codec-device", "codec-server"),
    "down/forward": ("agent", "codec-server"),
    "down/model": ("codec-device",),
    "down/repair": ("codec-device",),
    "down/rebuilt": ("codec-device",),
    "down/forgotten": ("codec-device",),
    "edge/inputs": ("codec-device",),
    "edge/replicas": ("voter",),
    "edge/voted": ("codec-device", "agent"),
    "edge/model": ("agent",),
    "up/inputs": ("codec-server",),
    "up/layers": ("codec-server",),
    "up/repair": ("codec-server",),
    "up/ack": ("trainer", "codec-server"),
    "up/outputs": ("trainer",),
    "server/inputs": ("trainer",),
    "server/activations": ("trainer",),
    "server/model": ("codec-server",),
    "server/stop": ("trainer",),
}
"""``plane/name`` to the services that listen there; for those who write one of them in another language."""


class Topic(NamedTuple):
    """A parsed topic."""

    device: str
    plane: str
    name: str

    @property
    def key(self) -> str:
        """``plane/name``, as in ``TABLE``."""
        return f"{self.plane}/{self.name}"


def build(device: str, plane: str, name: str) -> str:
    """``r2f/v1/{device}/{plane}/{name}``. Raises ValueError for a level that is not a plain name or a plane unknown."""
    for level in (device, name):
        if not LEVEL.fullmatch(level):
            raise ValueError(f"{level!r} cannot be a topic level: use letters, digits, '_', '.', '-', at most 64")
    if plane not in PLANES:
        raise ValueError(f"no plane {plane!r}; planes are {', '.join(PLANES)}")
    return f"{ROOT}/{device}/{plane}/{name}"


def parse(topic: str) -> Topic:
    """The levels of a topic. Raises ValueError where it is not one of ours."""
    levels = topic.split("/")
    if (
        len(levels) != 5
        or f"{levels[0]}/{levels[1]}" != ROOT
        or levels[3] not in PLANES
        or not LEVEL.fullmatch(levels[2])
        or not LEVEL.fullmatch(levels[4])
    ):
        raise ValueError(f"topic {topic[:120]!r} is not {ROOT}/<device>/<plane>/<name>")
    return Topic(levels[2], levels[3], levels[4])


def message_type(topic: Topic) -> type[Message]:
    """The message that travels on a topic. Raises ValueError for a topic that the table does not name."""
    if topic.key in TABLE:
        return TABLE[topic.key]
    if topic.plane == "state":
        return messages.State
    if topic.plane == "event":
        return messages.Timing
    raise ValueError(f"no message is defined for topic {topic.key!r}; known: {', '.join(TABLE)}")


def absolute(pattern: str, device: str) -> str:
    """A pattern under one device's topics: ``up/layers`` becomes ``r2f/v1/{device}/up/layers``; a full one stays."""
    return pattern if pattern.startswith(f"{ROOT}/") else f"{ROOT}/{device}/{pattern}"


def flow_topic(topic: str) -> str:
    """Where the receivers of a topic talk back to its sender. Raises ValueError for a topic that is not ours."""
    parsed = parse(topic)
    return build(parsed.device, ANSWERS[parsed.plane], FLOW)


@lru_cache(maxsize=1024)
def travels(topic: str) -> tuple[Topic, type[Message]]:
    """The parsed topic, and the message that travels there. Raises ValueError for one that the table does not name."""
    parsed = parse(topic)
    return parsed, message_type(parsed)
