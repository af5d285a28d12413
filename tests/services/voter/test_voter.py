"""The voter against messages that are well-formed and lie: each is dropped, and the next one is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from services.bus import encoding
from services.bus.messages import LayerReplicas, Message, Replicas, Tensor, Voted, Votes
from services.voter import voter

Y = np.arange(24, dtype=np.int8).reshape(1, 2, 3, 4)


class FakeBus:
    def __init__(self, *messages: Message) -> None:
        self.messages = messages
        self.published: list[Message] = []
        self.rejected: list[str] = []
        self.intact: Iterator[bool] = iter(())

    async def subscribe(self, *topics: str) -> None: ...

    async def __aiter__(self) -> AsyncIterator[tuple[str, Message]]:
        for message in self.messages:
            yield "edge/replicas", encoding.decode("r2f/v1/d/edge/replicas", encoding.encode(message), whole=True)

    async def publish(self, topic: str, message: Message) -> None:
        self.published.append(message)

    async def room(self, nbytes: int) -> None: ...

    def share(self, array: np.ndarray, readers: int = 1) -> Tensor:
        return encoding.inline(array)

    def open(self, tensor: Tensor) -> np.ndarray:
        return encoding.view(tensor)

    def release(self, tensor: Tensor) -> bool:
        return next(self.intact, True)

    def withdraw_all(self) -> None: ...

    def reject(self, topic: str, reason: str) -> None:
        self.rejected.append(reason)


def replicas(*arrays: np.ndarray, **changes: Any) -> Replicas:
    layer = LayerReplicas(index=0, replicas=tuple(encoding.inline(a) for a in arrays), **changes)
    return Replicas(session="s", iteration=0, attempt=0, segment=0, mode="training", vote="median", layers=(layer,))


@pytest.mark.parametrize(
    "lie",
    [
        replicas(),
        replicas(values=encoding.inline(Y.reshape(-1))),
        replicas(Y, Y),
        replicas(Y, Y, Y[:, :1]),
        replicas(Y, Y, Y, values=encoding.inline(Y.reshape(-1)[:1]), positions=encoding.inline(np.array([24], np.int32))),
        replicas(Y, Y, Y, values=encoding.inline(Y.reshape(-1)[:1]), positions=encoding.inline(np.array([-1], np.int32))),
        replicas(Y, values=encoding.inline(Y.reshape(-1)[:5])),
        replicas(Y, protected=True, values=encoding.inline(Y.reshape(-1))),
    ],
)
@pytest.mark.parametrize("few", [0, voter.FEW_BYTES])
async def test_lies_are_dropped(lie: Replicas, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voter, "FEW_BYTES", few)
    bus = FakeBus(lie, replicas(Y, Y + 1, Y))
    await voter.serve(bus)  # type: ignore[arg-type]
    assert len(bus.rejected) == 1
    (answer,) = [m for m in bus.published if isinstance(m, Voted)]
    assert answer.layers[0].vote is not None
    np.testing.assert_array_equal(encoding.view(answer.layers[0].vote), Y)


async def test_a_vote_on_what_was_taken_back_meanwhile_is_dropped() -> None:
    bus = FakeBus(replicas(Y, Y + 1, Y), replicas(Y, Y, Y))
    bus.intact = iter([True, False, True])
    await voter.serve(bus)  # type: ignore[arg-type]
    (reason,) = bus.rejected
    assert "layer 0 was taken back" in reason
    assert len([m for m in bus.published if isinstance(m, Voted)]) == 1


@pytest.mark.parametrize("few", [0, voter.FEW_BYTES])
async def test_errors_are_counted_in_what_the_device_went_on_with(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voter, "FEW_BYTES", few)
    """Beside a TMR pass that is another execution, on another input, than any that was voted on."""
    actual = Y.copy()
    actual.reshape(-1)[[0, 5, 7]] ^= 64
    bus = FakeBus(replicas(Y, Y + 1, Y), replicas(Y, Y + 1, Y, actual=encoding.inline(actual)))
    await voter.serve(bus)  # type: ignore[arg-type]
    alone, beside = (m.layers[0] for m in bus.published if isinstance(m, Votes))
    assert (alone.elements, alone.executions, alone.agreed, alone.errors) == (24, 3, 0, 0)
    assert (beside.elements, beside.executions, beside.agreed, beside.errors) == (24, 3, 0, 3)
