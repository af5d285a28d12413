"""Checkpoints: what was written comes back, and nothing else is taken for one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from accelsim.int8 import storage
from accelsim.int8.network import INPUT, Conv, Network, multiplier
from accelsim.int8.parameters import dequantize
from services.trainer.core import selection
from services.trainer.core.checkpoint import FILE, PREVIOUS, Checkpoint, CheckpointError, latest, read, write
from services.trainer.core.rate import Seen
from services.trainer.core.selection import Tried


def made(iteration: int) -> Checkpoint:
    rng = np.random.default_rng(iteration)
    weight_scale = np.full(2, 0.01, np.float32)
    layer = Conv(
        name="conv",
        inputs=(INPUT,),
        shape=(1, 1, 2),
        scale=0.5,
        weight=rng.integers(-127, 128, (2, 3, 1, 1)).astype(np.int8),
        bias=rng.integers(-9, 9, 2).astype(np.int32),
        weight_scale=weight_scale,
        multiplier=multiplier(0.25, weight_scale, 0.5),
    )
    table = np.tile((np.arange(256) - 128).astype(np.int8), (3, 1))
    network = Network(name="made", input_shape=(1, 1, 3), input_scale=0.25, input_table=table, layers=(layer,))
    parameters = dequantize(network)
    velocity = {i: (w * np.float32(0.1), b * np.float32(0.1)) for i, (w, b) in parameters.items()}
    average = {i: (w + np.float32(0.5), b + np.float32(0.5)) for i, (w, b) in parameters.items()}
    tried = None
    if iteration > 1:
        low, high = (np.full((3, 7), value, np.float32) for value in (0.25, 0.5))
        tried = selection.first(network, rng.random((7, 2), np.float32), low)
        tried = selection.further(tried, "iteration 2", network, high)
    squares = {i: (w * w, b * b) for i, (w, b) in parameters.items()} if iteration % 2 else {}
    seen = Seen(updates=iteration, loss=0.5)
    return Checkpoint(iteration, iteration + 1, "a" * 64, parameters, velocity, average, squares, network, seen, tried)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    pairs = [(a.parameters, b.parameters), (a.velocity, b.velocity), (a.average, b.average), (a.squares, b.squares)]
    return (
        (a.iteration, a.version, a.config, a.seen) == (b.iteration, b.version, b.config, b.seen)
        and same_tried(a.tried, b.tried)
        and storage.digest(a.network) == storage.digest(b.network)
        and a.squares.keys() == b.squares.keys()
        and all(np.array_equal(x, y) for p, q in pairs for i in p for x, y in zip(p[i], q[i], strict=True))
    )


def same_tried(a: Tried | None, b: Tried | None) -> bool:
    if a is None or b is None:
        return a is b
    return (
        (a.candidates, a.best_name) == (b.candidates, b.best_name)
        and storage.digest(a.best) == storage.digest(b.best)
        and all(np.array_equal(x, y) for x, y in ((a.truth, b.truth), (a.before, b.before), (a.agreement, b.agreement)))
    )


def test_comes_back_whole(tmp_path: Path) -> None:
    path = write(tmp_path, made(3))
    found = read(path, config="a" * 64)
    assert same(found, made(3))
    found.parameters[0][0][:] = 0  # the trainer updates them in place


def test_the_one_before_is_kept_and_used_when_the_newest_is_torn(tmp_path: Path) -> None:
    write(tmp_path, made(1))
    path = write(tmp_path, made(2))
    assert same(latest(tmp_path)[0], made(2))
    path.write_bytes(path.read_bytes()[:-5])
    found, refused = latest(tmp_path)
    assert same(found, made(1))
    assert len(refused) == 1
    assert FILE in refused[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([FILE, PREVIOUS])


@pytest.mark.parametrize("call", ["open", "fsync", "link", "replace"])
def test_a_crash_while_writing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write(tmp_path, made(1))
    write(tmp_path, made(2))

    def crash(*_: object, **__: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, call, crash)
    with pytest.raises(OSError, match="power cut"):
        write(tmp_path, made(3))
    monkeypatch.undo()
    assert same(latest(tmp_path)[0], made(2))
    assert write(tmp_path, made(3)).name == FILE
    assert same(latest(tmp_path)[0], made(3))


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, made(1))
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        try:
            found = read(path)
        except CheckpointError:
            continue
        # JSON has places where a bit may differ and the value not, such as blanks.
        assert same(found, made(1)), position


def test_refuses_another_run(tmp_path: Path) -> None:
    write(tmp_path, made(1))
    with pytest.raises(CheckpointError, match="resume with the same settings"):
        latest(tmp_path, config="b" * 64)
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        latest(tmp_path / "absent")


@pytest.mark.parametrize("change", ["truth", "before", "agreement"])
def test_refuses_answers_that_do_not_fit_one_another(tmp_path: Path, change: str) -> None:
    state = made(2)
    assert state.tried is not None
    short = {change: getattr(state.tried, change)[..., :-1].copy()}  # a sample less, or a class
    path = write(tmp_path, state._replace(tried=state.tried._replace(**short)))
    with pytest.raises(CheckpointError, match="do not fit one another"):
        read(path)


@pytest.mark.parametrize("change", ["missing", "misshaped", "not finite", "unknown"])
def test_refuses_tensors_that_do_not_fit_the_network(tmp_path: Path, change: str) -> None:
    state = made(1)
    weight, bias = state.parameters[0]
    if change == "missing":
        state.velocity.clear()
    elif change == "misshaped":
        state.parameters[0] = (weight[:1], bias)
    elif change == "not finite":
        bias[0] = np.inf
    else:
        state.parameters[5] = (weight, bias)
    path = write(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"missing|expected finite float32 of shape|unknown tensors"):
        read(path)


def test_a_header_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for data in (b"", b"\x00" * 8, (2**63).to_bytes(8, "little") + b"{}", os.urandom(200)):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            read(path)
