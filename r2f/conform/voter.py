"""What a voter must do (docs/bus.md, "A service of your own"), against ``services.voter.core``, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Activation
from r2f.conform.inline import array
from r2f.conform.probe import Check, Failed, Probe, damaged, present, survives
from services.bus import encoding
from services.bus.chunks import split
from services.bus.encoding import inline, view
from services.bus.messages import LayerReplicas, Manifest, Replicas, Voted
from services.scheme import Vote
from services.voter.core.ballot import count

LISTEN = ("edge/voted", "state/voter")
SHAPE = (2, 3, 5, 4)


def _runs(number: int, *, dtype: Any = np.int8, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[Activation]:
    """Executions that differ in many places, each value of the dtype among them."""
    info = np.iinfo(dtype)
    generator = np.random.default_rng([seed, number])
    base = generator.integers(info.min, info.max + 1, shape, dtype)
    return [
        np.where(generator.random(shape) < 0.4, generator.integers(info.min, info.max + 1, shape, dtype), base)
        for _ in range(number)
    ]


def _layer(index: int, runs: Sequence[Activation], **more: Any) -> LayerReplicas:
    tensors: dict[str, Any] = {name: inline(value) if isinstance(value, np.ndarray) else value for name, value in more.items()}
    return LayerReplicas(index=index, replicas=tuple(map(inline, runs)), **tensors)


def _question(probe: Probe, *layers: LayerReplicas, vote: Vote = "median", iteration: int = 1, **more: Any) -> Replicas:
    same: dict[str, Any] = {"session": probe.session, "attempt": 0, "segment": 0, "mode": "training"} | more
    return Replicas(iteration=iteration, vote=vote, layers=layers, **same)


def _compare(question: Replicas, answer: Voted | None, sent: str) -> None:
    """Raises Failed where the answer is not that of the reference."""
    if answer is None:
        raise Failed(sent, "one edge/voted", "nothing in time")
    for name in ("iteration", "attempt", "segment", "mode"):
        if getattr(answer, name) != getattr(question, name):
            raise Failed(sent, f"{name} {getattr(question, name)}", f"{getattr(answer, name)}")
    if [layer.index for layer in answer.layers] != [layer.index for layer in question.layers]:
        raise Failed(
            sent, f"layers {[layer.index for layer in question.layers]}", f"{[layer.index for layer in answer.layers]}"
        )
    for asked, voted in zip(question.layers, answer.layers, strict=True):
        runs = [view(run) for run in asked.replicas]
        positions, values = (None if one is None else view(one) for one in (asked.positions, asked.values))
        ballot = count(runs, question.vote, protected=asked.protected, positions=positions, values=values)
        actual = (
            view(asked.replicas[0] if asked.actual is None else asked.actual) if ballot.protected is None else ballot.protected
        )
        _same(actual, array(voted.actual, "actual", sent), "actual", sent)
        if voted.direct != asked.direct:
            raise Failed(sent, f"direct {asked.direct}", f"{voted.direct}")
        if ballot.vote is None:
            if voted.vote is not None:
                raise Failed(sent, "no vote over one execution", "a vote")
        elif voted.vote is not None:
            _same(ballot.vote, array(voted.vote, "vote", sent), "vote", sent)
        elif (question.mode == "training" and not asked.direct) or asked.awaited:  # nobody else reads it
            raise Failed(sent, "a vote", "none")


def _same(expected: npt.NDArray[Any], came: npt.NDArray[Any], what: str, sent: str) -> None:
    if came.dtype != expected.dtype or came.shape != expected.shape:
        raise Failed(sent, f"{what} {expected.dtype} {expected.shape}", f"{came.dtype} {came.shape}")
    wrong = np.flatnonzero(came.reshape(-1) != expected.reshape(-1))
    if len(wrong):
        at = int(wrong[0])
        said = f"{came.reshape(-1)[at]}, and {len(wrong)} of {came.size} elements wrong"
        raise Failed(sent, f"{what}[{at}] = {expected.reshape(-1)[at]}", said)


async def _ask(probe: Probe, question: Replicas, sent: str) -> Voted:
    """Send it, and compare the answer, which is the next one that comes in this session."""
    await probe.send("edge/replicas", question)
    answer = await probe.hear(Voted, lambda voted: voted.session == question.session)
    _compare(question, answer, sent)
    assert answer is not None
    return answer


async def _there(probe: Probe) -> None:
    """It says in its state that it is there."""
    await present(probe, "voter")


async def _answers(probe: Probe) -> None:
    """It answers a question with the question's numbers."""
    await _ask(probe, _question(probe, _layer(7, _runs(3)), iteration=2**30 + 5, attempt=3, segment=9), "three int8 executions")


async def _median(probe: Probe) -> None:
    """The median of 3, 5 and 7 executions, int8 and uint8."""
    for number in (3, 5, 7):
        for dtype in (np.int8, np.uint8):
            sent = f"{number} executions of {np.dtype(dtype)}, vote: median"
            await _ask(probe, _question(probe, _layer(0, _runs(number, dtype=dtype)), iteration=number), sent)


async def _bitwise(probe: Probe) -> None:
    """The majority of each bit of 3, 5 and 7 executions, int8 and uint8."""
    for number in (3, 5, 7):
        for dtype in (np.int8, np.uint8):
            sent = f"{number} executions of {np.dtype(dtype)}, vote: bitwise"
            await _ask(probe, _question(probe, _layer(0, _runs(number, dtype=dtype)), vote="bitwise"), sent)


async def _one(probe: Probe) -> None:
    """One execution is not voted on, and goes on."""
    await _ask(probe, _question(probe, _layer(0, _runs(1))), "one execution")


async def _values(probe: Probe) -> None:
    """The referee's values stand in the vote: at positions, and of a whole layer."""
    runs = _runs(5)
    positions = np.flatnonzero(np.random.default_rng(1).random(runs[0].size) < 0.3).astype(np.int32)
    values = np.random.default_rng(2).integers(-128, 128, positions.size, np.int8)
    await _ask(
        probe, _question(probe, _layer(0, runs, positions=positions, values=values)), "five executions and values at positions"
    )
    whole = np.random.default_rng(3).integers(-128, 128, runs[0].size, np.int8)
    await _ask(probe, _question(probe, _layer(0, _runs(1), values=whole)), "one execution and values of the whole layer")


async def _two(probe: Probe) -> None:
    """Two executions, and the referee's values where they differ."""
    first, second = _runs(2)
    positions = np.flatnonzero(first.reshape(-1) != second.reshape(-1)).astype(np.int32)
    values = np.random.default_rng(4).integers(-128, 128, positions.size, np.int8)
    await _ask(
        probe, _question(probe, _layer(0, [first, second], positions=positions, values=values)), "two executions and values"
    )


async def _actual(probe: Probe) -> None:
    """An actual output that is none of the executions goes on as it is."""
    *runs, actual = _runs(4)
    await _ask(probe, _question(probe, _layer(0, runs, actual=actual)), "three executions and another actual output")


async def _protected(probe: Probe) -> None:
    """Of a protected layer the vote of the first three executions goes on, also in inference mode."""
    await _ask(probe, _question(probe, _layer(0, _runs(7), protected=True)), "seven executions of a protected layer")
    question = _question(probe, _layer(0, _runs(3), protected=True), vote="bitwise", mode="inference")
    await _ask(probe, question, "a protected layer in inference mode")


async def _direct(probe: Probe) -> None:
    """A direct layer stays direct; where the agent awaits its vote, it has one."""
    await _ask(probe, _question(probe, _layer(0, _runs(3), direct=True)), "a direct layer")
    await _ask(probe, _question(probe, _layer(0, _runs(3), direct=True, awaited=True)), "a direct layer whose vote is awaited")


async def _several(probe: Probe) -> None:
    """Several layers in one message, in their order."""
    layers = [_layer(index, _runs(3, seed=index, shape=(1, index, 2, 3))) for index in (2, 3, 9)]
    await _ask(probe, _question(probe, *layers), "three layers of different shapes")


async def _again(probe: Probe) -> None:
    """The same question again has the same answer."""
    question = _question(probe, _layer(0, _runs(3)))
    first = await _ask(probe, question, "a question")
    if await _ask(probe, question, "the same question again") != first:
        raise Failed("the same question again", "the same answer", "another one")


async def _sessions(probe: Probe) -> None:
    """A new session is answered like the one before."""
    await _ask(probe, _question(probe, _layer(0, _runs(3)), session=f"{probe.session}-next"), "a question of a new session")


async def _newer(probe: Probe) -> None:
    """Keys that it does not know are passed over."""
    question = _question(probe, _layer(0, _runs(3)))
    plain = msgspec.msgpack.decode(encoding.encode(question))
    plain["layers"][0]["added_later"] = plain["added_later"] = {"a": [1]}
    await probe.raw("edge/replicas", msgspec.msgpack.encode(plain))
    _compare(question, await probe.hear(Voted), "a question with keys of a later contract")


async def _large(probe: Probe) -> None:
    """A question in chunks of 127 KiB, whose answer is too large for one packet."""
    await _ask(probe, _question(probe, _layer(0, _runs(3, shape=(4, 40, 40, 100)))), "640,000 elements, three executions")


async def _disordered(probe: Probe) -> None:
    """Chunks in any order, and twice."""
    question = _question(probe, _layer(0, _runs(3, shape=(1, 10, 10, 10))))
    manifest, *chunks = split(probe.session, encoding.encode(question), 300)
    assert isinstance(manifest, Manifest)
    for part in (manifest, *reversed(chunks[1:]), *chunks[1:], manifest, chunks[0]):
        await probe.raw("edge/replicas", encoding.encode(part))
    _compare(question, await probe.hear(Voted), "a question in chunks of 300 bytes, the last one first, and twice")


async def _hostile(probe: Probe) -> None:
    """What is no question is dropped, and the next question answered."""
    good = _question(probe, _layer(0, _runs(3)))
    wrong = {
        "replicas of different shapes": _layer(0, [_runs(1)[0], np.zeros((1, 1, 1, 1), np.int8), _runs(1)[0]]),
        "replicas of different dtypes": _layer(0, [_runs(1)[0], _runs(1, dtype=np.uint8)[0], _runs(1)[0]]),
        "no replicas": LayerReplicas(index=0, replicas=()),
        "two replicas that differ, without values": _layer(0, _runs(2)),
        "four replicas": _layer(0, _runs(4)),
        "a position behind the end": _layer(
            0, _runs(3), positions=np.array([2**31 - 1], np.int32), values=np.zeros(1, np.int8)
        ),
        "a position before the beginning": _layer(0, _runs(3), positions=np.array([-1], np.int32), values=np.zeros(1, np.int8)),
        "positions that fall": _layer(0, _runs(3), positions=np.array([5, 4], np.int32), values=np.zeros(2, np.int8)),
        "more values than positions": _layer(0, _runs(3), positions=np.array([5], np.int32), values=np.zeros(2, np.int8)),
    }
    packets = [
        *damaged(good),
        *((what, encoding.encode(_question(probe, layer, iteration=99))) for what, layer in wrong.items()),
    ]
    for what, shape, data in (
        ("a tensor with too few bytes", [2, 3], b"12345"),
        ("a tensor whose size overflows", [2**32, 2**32], b""),
        ("a tensor of negative size", [-1, -6], b"123456"),
    ):
        plain = msgspec.msgpack.decode(encoding.encode(good))
        plain["layers"][0]["replicas"][0] |= {"shape": shape, "data": data}
        packets.append((what, msgspec.msgpack.encode(plain)))
    numbers = iter(range(1000, 10**6))

    async def alive() -> None:
        question = _question(probe, _layer(0, _runs(3)), iteration=next(numbers))
        await _ask(probe, question, "a right question")

    await survives(probe, "voter", [(what, "edge/replicas", payload) for what, payload in packets], alive)


CHECKS: Sequence[Check] = (
    _there, _answers, _median, _bitwise, _one, _values, _two, _actual, _protected, _direct, _several, _again, _sessions, _newer,
    _large, _disordered, _hostile,
)  # fmt: skip
