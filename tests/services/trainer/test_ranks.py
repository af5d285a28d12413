"""A replay in chunks: the mean of its parts, the same to the bit on 1, 2 and 4 processes, and a rank that dies."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.int8.network import Activation, Network
from accelsim.lowering import lower
from broker.child import environment, python
from broker.launch import free_port
from services.trainer import ranks
from services.trainer.core import optimiser, parts, shipping
from services.trainer.core.loss import Labels, Soft, Targets
from services.trainer.core.replay import Replay, replay

IMAGES = np.random.default_rng(0).integers(0, 256, (19, 8, 8, 1), dtype=np.uint8)
TRUTH = np.random.default_rng(1).integers(0, 10, 19)
PROBABILITIES = np.random.default_rng(2).dirichlet(np.ones(10), 19).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return lower(zoo.build("digits_cnn", 10).eval(), IMAGES, (0.5,), (0.5,), name="small")


@pytest.fixture(scope="module")
def batch(network: Network) -> tuple[Activation, dict[int, Activation]]:
    x = network.quantize_images(IMAGES)
    every = dict(enumerate(Engine(network).run(x)))
    random = np.random.default_rng(3)
    outputs = {}
    for index, _ in network.convs():
        y = every[index].copy()
        y.view(np.uint8).reshape(-1)[random.integers(0, y.size, 5)] ^= 64
        outputs[index] = y
    return x, outputs


def same(a: Replay, b: Replay) -> None:
    assert (a.loss, a.correct, a.norm) == (b.loss, b.correct, b.norm)
    assert list(a.gradients) == list(b.gradients)
    for index, pair in a.gradients.items():
        for mine, theirs in zip(pair, b.gradients[index], strict=True):
            np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


LABELS: dict[str, Labels] = {
    "numbers": TRUTH,
    "probabilities": PROBABILITIES,
    "soft": Soft(PROBABILITIES, 2.0),
    "soft with hard": Soft(PROBABILITIES, 3.0, TRUTH, 0.25),
}


@pytest.mark.parametrize("name", LABELS)
def test_chunks_are_the_mean_of_parts(
    name: str, network: Network, batch: tuple[Activation, dict[int, Activation]]
) -> None:  # fmt: skip
    """Against a loop over the parts with plain NumPy sums, and against the whole batch, within rounding."""
    (x, outputs), labels, engine = batch, LABELS[name], Engine(network)
    whole = replay(network, x, outputs, labels, engine.fault_free)
    same(whole, parts.chunked(1)(network, x, outputs, labels, engine.fault_free))
    found = parts.chunked(4)(network, x, outputs, labels, engine.fault_free)
    sums: dict[tuple[int, int], np.ndarray] = {}
    loss = 0.0
    for a, b in itertools.pairwise((0, 4, 9, 14, 19)):
        mine = labels
        if isinstance(labels, Soft):
            hard = None if labels.hard is None else labels.hard[a:b]
            mine = Soft(labels.probabilities[a:b], labels.temperature, hard, labels.share)
        else:
            mine = labels[a:b]
        part = replay(network, x[a:b], {i: y[a:b] for i, y in outputs.items()}, mine, engine.fault_free)
        loss += (b - a) * part.loss
        for index, pair in part.gradients.items():
            for k in (0, 1):
                sums[index, k] = sums.get((index, k), 0) + (b - a) * pair[k].numpy().astype(np.float64)
    assert found.loss == loss / 19
    for (index, k), total in sums.items():
        np.testing.assert_array_equal(found.gradients[index][k].numpy(), (total / 19).astype(np.float32))
        np.testing.assert_allclose(found.gradients[index][k], whole.gradients[index][k], rtol=1e-4, atol=1e-5)
    assert found.norm == optimiser.norm(found.gradients)
    assert (found.correct, found.loss) == (whole.correct, pytest.approx(whole.loss))


def test_no_part_is_empty(network: Network, batch: tuple[Activation, dict[int, Activation]]) -> None:
    x, outputs = batch
    for chunks in (1, 2, 5, 19, 64):
        sizes = [len(part[0]) for part in parts.cut(x, outputs, TRUTH, chunks)]
        assert sum(sizes) == 19
        assert len(sizes) == min(chunks, 19)
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0


@pytest.mark.parametrize("name", LABELS)
def test_what_is_shipped_comes_back(
    name: str, network: Network, batch: tuple[Activation, dict[int, Activation]]
) -> None:  # fmt: skip
    x, outputs = batch
    cut = {i: shipping.Part(*one) for i, one in enumerate(parts.cut(x, outputs, LABELS[name], 3))}
    there, got = shipping.what(shipping.asked(network, cut))
    assert there is not None
    engine, others = Engine(network), Engine(there)
    mine = {i: replay(network, *part, engine.fault_free) for i, part in cut.items()}
    theirs = shipping.came(shipping.answered({i: replay(there, *part, others.fault_free) for i, part in got.items()}))
    assert list(theirs) == [0, 1, 2]
    for i in mine:
        same(mine[i], theirs[i])
    assert shipping.what(shipping.asked(None, cut))[0] is None


def test_ranks_give_the_bits_of_one_process(
    network: Network, batch: tuple[Activation, dict[int, Activation]]
) -> None:  # fmt: skip
    (x, outputs), engine = batch, Engine(network)
    wanted = {name: parts.chunked(4)(network, x, outputs, labels, engine.fault_free) for name, labels in LABELS.items()}
    for count in (2, 4):
        meet = f"127.0.0.1:{free_port()}"
        others = [
            subprocess.Popen(
                python("services.trainer.ranks", "--rank", str(rank), "--ranks", str(count), "--meet", meet),
                env={**environment(), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(1, count)
        ]
        try:
            with ranks.sharing(count, 4, meet) as replaying:
                assert replaying is not None
                for name, labels in LABELS.items():
                    same(wanted[name], replaying(network, x, outputs, labels, engine.fault_free))
            for other in others:
                assert other.wait(60) == 0, "it ends with the trainer"
        finally:
            for other in others:
                other.kill()
                other.wait()


ALONE = """
    import sys
    import numpy as np, torch
    from accelsim import zoo
    from accelsim.engine import Engine
    from accelsim.lowering import lower
    from services.trainer import ranks
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    network = lower(zoo.build("digits_cnn", 10).eval(), images, (0.5,), (0.5,), name="small")
    engine = Engine(network)
    x = network.quantize_images(images)
    outputs = {i: y for i, y in enumerate(engine.run(x)) if i in dict(network.convs())}
    try:
        with ranks.sharing(2, 2, sys.argv[1]) as replaying:
            while True:
                replaying(network, x, outputs, np.zeros(16, np.int64), engine.fault_free)
                print("replayed", flush=True)
    except ranks.Gone as error:
        print(f"Gone: {error}", flush=True)
"""


@pytest.mark.parametrize("victim", ["trainer", "rank"])
def test_who_is_left_notices(victim: str) -> None:
    meet = f"127.0.0.1:{free_port()}"
    command = python("services.trainer.ranks", "--rank", "1", "--ranks", "2", "--meet", meet)
    trainer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(ALONE), meet], env=environment(), stdout=subprocess.PIPE, text=True
    )
    rank = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "replayed\n"
        if victim == "rank":
            rank.kill()
            said, _ = trainer.communicate(timeout=60)
            assert said.splitlines()[-1].startswith("Gone: rank 1 is gone")
        else:
            trainer.kill()
            _, logged = rank.communicate(timeout=60)
            assert rank.returncode == -signal.SIGTERM, "whoever watches it starts it again"
            assert "starting over" in logged
            assert "Traceback" not in logged
    finally:
        for process in (trainer, rank):
            process.kill()
            process.communicate()


def test_what_is_refused() -> None:
    with ranks.sharing(1, 1, "") as nobody:
        assert nobody is None
    with pytest.raises(ValueError, match="4 ranks for batches in 2 chunks: 2 would idle"), ranks.sharing(4, 2, "x:1"):
        pass
    for meet in ("", "host", "host:", "host:x", "host:70000", ":1"):
        with pytest.raises(ValueError, match="HOST:PORT of rank 0"), ranks.sharing(2, 2, meet):
            pass


def test_ranks_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "MEETING_S", 1)
    begin = time.monotonic()
    with (
        pytest.raises(ValueError, match="rank 0 of 2 did not meet the others"),
        ranks.sharing(2, 2, f"127.0.0.1:{free_port()}"),
    ):
        pass
    assert time.monotonic() - begin < 30


def test_target_images_cross_to_another_process_and_are_cut_with_the_batch() -> None:
    images = np.random.default_rng(4).normal(size=(5, 2, 2, 3)).astype(np.float32)
    labels = Targets(images, "l1", span=2.0)
    x = np.zeros((5, 2, 2, 1), np.int8)
    cut = [shipping.Part(*one) for one in parts.cut(x, {0: x}, labels, 2)]
    _, back = shipping.what(shipping.asked(None, dict(enumerate(cut))))
    joined = []
    for number, part in enumerate(cut):
        got = back[number].labels
        assert isinstance(got, Targets)
        assert (got.criterion, got.span, len(got.images)) == ("l1", 2.0, len(part.x))
        joined.append(got.images)
    np.testing.assert_array_equal(np.concatenate(joined), images)
