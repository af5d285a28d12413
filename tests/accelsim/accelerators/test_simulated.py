"""The simulated accelerator: keyed, repeatable, and the engine's replicas of the drawn flips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from accelsim.accelerators import Accelerator, PortVoter, Simulated, vote_at
from accelsim.engine import check, reference
from accelsim.faults import Burst, Rates
from accelsim.int8.network import INPUT, Add, Conv, Network

random = np.random.default_rng(2)
BER = Rates.uniform(2e-3)


def conv(source: int, channels: int) -> Conv:
    return Conv(
        name=f"conv of {source}", inputs=(source,), shape=(8, 8, 16), scale=1.0,
        weight=random.integers(-127, 128, (16, channels, 3, 3), np.int8), bias=random.integers(-999, 999, 16, np.int32),
        weight_scale=np.ones(16, np.float32), multiplier=np.full(16, 1e-3, np.float32), padding=(1, 1), low=0,
    )  # fmt: skip


NETWORK = Network(
    name="small",
    input_shape=(8, 8, 3),
    input_scale=1.0,
    input_table=np.zeros((3, 256), np.int8),
    layers=(conv(INPUT, 3), conv(0, 16), Add(name="add", inputs=(0, 1), shape=(8, 8, 16), scale=1.0, multipliers=(0.5, 0.5))),
)
X = random.integers(-128, 128, (4, 8, 8, 3), np.int8)


def device(**settings: object) -> Simulated:
    accelerator = Simulated(**{"rates": BER, "seed": 1, "device": "a", **settings})  # type: ignore[arg-type]
    accelerator.load(NETWORK)
    return accelerator


def equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_faults_it_is_the_reference() -> None:
    assert equal(device(rates=Rates()).run(X), reference.run(NETWORK, X))


def test_replicas_are_the_naive_executions_of_the_drawn_flips() -> None:
    a = device()
    naive = [reference.replica(NETWORK.layers[0], X, a.flips(0, X.shape, iteration=3, replica=r)) for r in range(5)]  # type: ignore[arg-type]
    assert equal(a.run_replicas(0, X, iteration=3, count=5), naive)
    assert equal(a.run_replicas(0, X, iteration=3, count=2, first=3), naive[3:])
    assert equal([a.run_layer(0, X, iteration=3, replica=r) for r in range(5)], naive)
    assert not np.array_equal(naive[0], naive[1])


def test_run_carries_errors_on_and_keeps_other_layers_exact() -> None:
    a = device()
    first, second, total = a.run(X, iteration=9)
    assert np.array_equal(first, a.run_layer(0, X, iteration=9))
    assert np.array_equal(second, a.run_layer(1, first, iteration=9))
    assert np.array_equal(total, reference.layer(NETWORK.layers[2], [first, second]))


@pytest.mark.parametrize("path", ["auto", "portable"])
def test_a_chained_run_is_run_replicas_layer_by_layer(path: str) -> None:
    a = device(path=path)
    parts: dict[tuple[int, int], list[np.ndarray]] = {}

    def each(index: int, replicas: Sequence[np.ndarray], first: int) -> None:
        parts[index, first] = [y.copy() for y in replicas]

    outputs = a.run_chained(X, each, iteration=4, count=5)
    assert equal(outputs, a.run(X, iteration=4))
    for index, x in ((0, X), (1, outputs[0])):
        expected = a.run_replicas(index, x, iteration=4, count=5)
        pieces = [parts[key] for key in sorted(parts) if key[0] == index]
        assert equal([np.concatenate(same) for same in zip(*pieces, strict=True)], expected)


def test_what_a_user_of_a_chained_run_raises_comes_out() -> None:
    def each(index: int, replicas: Sequence[np.ndarray], first: int) -> None:
        if index == 1:
            raise KeyError("mine")

    with pytest.raises((KeyError, RuntimeError)) as caught:
        device(path="vnni" if check("vnni") == "" else "portable").run_chained(X[:1].repeat(8, 0), each)
    assert "mine" in str(caught.value) or "mine" in str(caught.value.__cause__)


@pytest.mark.parametrize("change", [{"seed": 2}, {"device": "b"}, {"fault_model": Burst(3)}, {"rates": Rates(output=2e-3)}])
def test_faults_depend_on_what_they_are_keyed_by(change: dict[str, object]) -> None:
    assert equal(device().run(X), device().run(X))
    assert not equal(device().run(X), device(**change).run(X))
    assert not equal(device().run(X, iteration=1), device().run(X, iteration=2))


def test_rates_and_seed_may_be_set_between_runs() -> None:
    a = device()
    a.seed, a.rates = 5, Rates(weight=1e-3)
    assert equal(a.run(X), device(seed=5, rates=Rates(weight=1e-3)).run(X))


def test_paths_give_the_same_faults() -> None:
    assert equal(device(path="portable").run(X), device().run(X))


def test_weight_flips_last_for_the_whole_batch() -> None:
    a = device(rates=Rates(weight=5e-3))
    same = np.repeat(X[:1], 6, axis=0)
    y = a.run_layer(0, same)
    assert (y == y[:1]).all()
    assert not np.array_equal(y[:1], reference.layer(NETWORK.layers[0], [X[:1]]))


def test_nothing_runs_before_load() -> None:
    with pytest.raises(RuntimeError, match="call load"):
        Simulated().run(X)


def test_it_is_an_accelerator() -> None:
    accelerator: Accelerator = device()
    assert len(accelerator.run(X)) == 3


def test_votes_at_ports_until_told_otherwise() -> None:
    a, plain = device(), device()
    assert isinstance(a, PortVoter)
    a.vote_at({1: ("weight", "output")})
    voted, unvoted = (d.flips(1, (4, 8, 8, 16), iteration=3, replica=0) for d in (a, plain))
    np.testing.assert_array_equal(voted.input, unvoted.input)
    assert len(voted.weight) < len(unvoted.weight) / 4
    assert len(voted.output) < len(unvoted.output) / 4
    np.testing.assert_array_equal(a.run(X, iteration=3)[0], plain.run(X, iteration=3)[0])
    assert not np.array_equal(a.run(X, iteration=3)[1], plain.run(X, iteration=3)[1])
    a.vote_at({})
    assert equal(a.run(X, iteration=3), plain.run(X, iteration=3))


def test_a_port_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 0 .*accumulators are in the array"):
        device().vote_at({0: ("accumulator",)})
    with pytest.raises(ValueError, match=r"layer 2 .*only MAC layers"):
        device().vote_at({2: ("weight",)})


def test_an_accelerator_without_voters_is_asked_for_none() -> None:
    class Plain:
        """Of somebody else's make."""

        load = run = run_layer = run_replicas = None

    other: Accelerator = Plain()  # type: ignore[assignment]
    vote_at(other, {})
    with pytest.raises(ValueError, match="Plain: it has no voters at its ports"):
        vote_at(other, {0: ("weight",)})
