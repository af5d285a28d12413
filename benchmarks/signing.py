"""What signed messages cost: bytes on the link and microseconds at both ends (``python -m benchmarks.signing``).

Each message is encoded and decoded with and without its envelope, in this process and without a broker; the median of many
times. ``bytes`` are those of one packet's payload, or of all of a message in chunks before they are cut.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from services.bus import encoding, topics
from services.bus.keys import KEY_BYTES, Keys
from services.bus.messages import Ack, EncodedLayer, EncodedLayers, EncodedModel, Message
from services.bus.sealing import Seals

DEVICE = "edge-0"
TIMES = 200


class Cost(NamedTuple):
    """One message: bytes without an envelope and what it adds, microseconds to encode and decode without, to seal, to open."""

    message: str
    nbytes: int
    added: int
    plain_us: float
    seal_us: float
    open_us: float


def messages() -> dict[str, tuple[str, Message]]:
    """By what they are called, each with its topic."""
    body = np.random.default_rng(0).bytes(16 << 20)
    layer = EncodedLayer(3, 1 << 60, body[: 10 << 10])
    layers = EncodedLayers(session="run-1", iteration=7, attempt=0, sent_at=1.5e9, segment=2, batch=32, layers=(layer,))
    sizes = {"64 KiB": 1 << 16, "1 MiB": 1 << 20, "16 MiB": 16 << 20}
    models = {
        f"a model, {name}": EncodedModel(
            session="run-1", iteration=7, sent_at=1.5e9, version=9, base=8, digest=1 << 60, body=body[:size]
        )
        for name, size in sizes.items()
    }
    return {
        "an acknowledgement": ("up/ack", Ack(session="run-1", of="mode", seq=1, ok=True, version=1)),
        "layers, 10 KiB": ("up/layers", layers),
        **{name: ("down/model", model) for name, model in models.items()},
    }


def measure(times: int = TIMES) -> list[Cost]:
    """The cost of each message. Raises ValueError where one does not come back as it was."""
    keys = Keys(Path("none"), {DEVICE: bytes(KEY_BYTES)})
    found = []
    for name, (short, message) in messages().items():
        topic = topics.absolute(short, DEVICE)
        sender, receiver = (Seals(keys, topics.SENDERS[short][0], DEVICE, passive=True, counts=Counter()) for _ in range(2))
        plain = encoding.encode(message)
        often = max(5, min(times, times * (1 << 18) // len(plain)))

        def reopened(topic: str = topic, sender: Seals = sender, message: Message = message) -> bytes:
            return encoding.encode(sender.seal(topic, message))

        def opened(payload: bytes, topic: str = topic, receiver: Seals = receiver) -> Message:
            return receiver.open(topic, encoding.decode(topic, payload, whole=True))

        sealed = [reopened() for _ in range(often)]
        if opened(sealed[0]) != message:
            raise ValueError(f"{name} did not come back as it was")
        rest = iter(sealed[1:])
        coded = _us(lambda m=message: encoding.encode(m), often)  # type: ignore[misc]
        decoded = _us(lambda t=topic, p=plain: encoding.decode(t, p, whole=True), often)  # type: ignore[misc]
        seal = _us(reopened, often) - coded
        took = _us(lambda r=rest, o=opened: o(next(r)), often - 1) - decoded  # type: ignore[misc]
        found.append(Cost(name, len(plain), len(sealed[0]) - len(plain), coded + decoded, seal, took))
    return found


def _us(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter_ns()
        work()
        taken.append((time.perf_counter_ns() - start) / 1000)
    return median(taken)


def table(costs: list[Cost]) -> Table:
    """A row a message."""
    found = Table(
        "message", "bytes", "signed: more bytes", "encode and decode, µs", "to seal, more µs", "to open, more µs", box=None
    )
    for cost in costs:
        found.add_row(cost.message, f"{cost.nbytes:,}", str(cost.added), *(f"{us:.0f}" for us in cost[3:]))
    return found


if __name__ == "__main__":
    Console(width=110).print(table(measure()))
