"""Messages of a made-up run, given to what is watched as if they came from the bus."""

from __future__ import annotations

from typing import Any

from services.bus import encoding, topics
from services.bus.messages import Iteration, LayerRebuilt, LayerVotes, Message, Timing, Votes
from services.monitor import watching
from services.monitor.core.watched import Watched


def tell(watched: Watched, name: str, message: Message, device: str = "d", now: float = 1.0) -> None:
    topic = f"r2f/v1/{device}/{name}"
    decoded = encoding.decode(topic, encoding.encode(message), whole=True)
    watching.take(watched, topics.parse(topic), decoded, now)


def timing(iteration: int, stage: Any = "compress", **changes: Any) -> Timing:
    return Timing(
        **{"session": "s", "stage": stage, "iteration": iteration, "host_s": 0.5, "bytes": 100, "segment": 0} | changes
    )


def iteration(number: int, **changes: Any) -> Iteration:
    given: dict[str, Any] = {
        "session": "s", "iteration": number, "steps": 10, "loss": 2.0, "accuracy": 50.0, "grad_norm": 1.0, "wall_s": 0.25,
        "attempts": 1, "input_bytes": 64, "model_bytes": 900, "network": "net",
        "layers": (LayerRebuilt(0, 300, 5), LayerRebuilt(2, 700, 0, False)),
    }  # fmt: skip
    return Iteration(**given | changes)


def votes(number: int, **changes: Any) -> Votes:
    return Votes(**{"session": "s", "iteration": number, "segment": 0, "layers": (LayerVotes(0, 300, 3, 290, 6),)} | changes)


def run_of(watched: Watched, session: str = "s", device: str = "d") -> Any:
    return watched.devices[device].runs[session]


def play(watched: Watched, numbers: range) -> None:
    for number in numbers:
        tell(watched, "event/compress", timing(number))
        tell(watched, "event/compress", timing(number))  # at least once
        tell(watched, "event/compress", timing(number, segment=-2, bytes=30))
        tell(watched, "event/votes", votes(number))
        tell(watched, "event/iteration", iteration(number, loss=float(number)))
