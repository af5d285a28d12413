"""The server rebuilds a pass in order whatever the order of its segments, and asks at most twice."""

from __future__ import annotations

import numpy as np
import pytest

from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Activation, Conv, Network, UInt8
from accelsim.int8.walk import last_uses, walk
from services.codec.core import layers
from services.codec.core.kept import Kept
from services.codec.core.rebuild import Rebuild, Rebuilt, Wrong
from services.codec.core.sent import SentLayer
from services.scheme import Codec, Scheme

Computed = dict[int, tuple[Activation, Activation, Activation]]


def computed(network: Network, images: UInt8, wrong: tuple[int, ...] = ()) -> Computed:
    """Of each MAC layer the actual output, its vote and what is right; the ``wrong`` ones have a wrong vote."""
    engine, generator = Engine(network), np.random.default_rng(1)
    values: dict[int, Activation] = {INPUT: network.quantize_images(images)}
    found: Computed = {}
    for index, layer, operands in walk(network, values):
        right = engine.fault_free(index, operands)
        values[index] = right
        if isinstance(layer, Conv):
            values[index] = np.where(generator.random(right.shape) < 0.05, right + right.dtype.type(5), right)
            vote = right.copy()
            if len(found) in wrong:
                vote.reshape(-1)[:2] += 1
            found[index] = values[index], vote, right
    return found


def sent(found: Computed, codec: Codec = "chained") -> list[SentLayer]:
    return [SentLayer(i, layers.digest(y), layers.encode(y, vote, codec)) for i, (y, vote, _) in found.items()]


def rebuilding(network: Network, images: UInt8, scheme: Scheme | None = None) -> Rebuild:
    rebuild = Rebuild(network, Engine(network), scheme or Scheme())
    rebuild.start(images)
    return rebuild


def test_segments_may_come_in_any_order_and_twice(small: Network, digits: UInt8) -> None:
    found = computed(small, digits)
    bodies = sent(found)
    rebuild = rebuilding(small, digits)
    order = list(range(len(bodies)))[::-1]
    for number in order:
        assert rebuild.next() is None, "the first layer is missing"
        assert rebuild.take(number, [bodies[number]])
        assert not rebuild.take(number, [bodies[number]])
    for body in bodies:
        built = rebuild.next()
        assert isinstance(built, Rebuilt)
        assert (built.index, built.faithful, built.repaired) == (body.index, True, 0)
        np.testing.assert_array_equal(built.actual, found[body.index][0])
    assert rebuild.next() is None
    assert not rebuild.take(0, bodies[:1]), "a segment that was taken before"


def test_nothing_is_rebuilt_before_the_images_are_here(small: Network, digits: UInt8) -> None:
    rebuild = Rebuild(small, Engine(small), Scheme())
    assert rebuild.take(0, sent(computed(small, digits)))
    assert not rebuild.started
    assert rebuild.next() is None
    rebuild.start(digits)
    assert isinstance(rebuild.next(), Rebuilt)


@pytest.mark.parametrize("wrong", [(0,), (1, 2), (0, 1, 2), (3,)])
def test_two_questions_are_enough(small: Network, digits: UInt8, wrong: tuple[int, ...]) -> None:
    found = computed(small, digits, wrong)
    kept = Kept(small, "auto", 0, small.quantize_images(digits))
    bodies = sent(found)
    for body in bodies:
        kept.keep(body.index, found[body.index][0], body.body)
    rebuild = rebuilding(small, digits)
    rebuild.take(0, bodies)
    asked: list[Wrong] = []
    built: dict[int, Rebuilt] = {}
    while (step := rebuild.next()) is not None:
        if isinstance(step, Wrong):
            asked.append(step)
            assert rebuild.next() is None, "it waits for the answer"
            assert rebuild.mend(kept.correct(step.index, step.digests))
            assert not rebuild.mend({}), "nothing is asked for now"
        else:
            built[step.index] = step
    order = [body.index for body in bodies]
    assert [a.index for a in asked] == [order[n] for n in wrong[:2]]
    assert [a.digests is None for a in asked] == [False, True][: len(asked)]
    assert list(built) == order
    for n, index in enumerate(order):
        np.testing.assert_array_equal(built[index].actual, found[index][0])
        assert (built[index].repaired > 0) == (n in wrong)


def test_without_repairs_what_is_wrong_says_so(small: Network, digits: UInt8) -> None:
    found = computed(small, digits, (1,))
    rebuild = rebuilding(small, digits, Scheme(exact=False))
    rebuild.take(0, sent(found))
    faithful = []
    while isinstance(built := rebuild.next(), Rebuilt):
        faithful.append(built.faithful)
    assert faithful[:2] == [True, False]
    assert len(faithful) == len(found)


def test_beside_a_run_of_its_own_predictions_come_from_the_batch_alone(small: Network, digits: UInt8) -> None:
    """A wrong vote is wrong in its own layer and nowhere else, as the votes of the run beside are not of the actual input."""
    engine = Engine(small)
    free: dict[int, Activation] = {INPUT: small.quantize_images(digits)}
    bodies, actual = [], {}
    for index, layer, operands in walk(small, free):
        free[index] = engine.fault_free(index, operands)
        if isinstance(layer, Conv):
            actual[index] = free[index] ^ free[index].dtype.type(3)
            vote = free[index].copy()
            if len(bodies) == 1:
                vote.reshape(-1)[0] += 1
            bodies.append(SentLayer(index, layers.digest(actual[index]), layers.encode(actual[index], vote, "golden")))
    rebuild = rebuilding(small, digits, Scheme(codec="golden"))
    rebuild.take(0, bodies)
    wrong = []
    while isinstance(built := rebuild.next(), Rebuilt):
        wrong.append(int(np.count_nonzero(built.actual != actual[built.index])))
        assert built.faithful == (wrong[-1] == 0)
    assert wrong == [0, 1, *[0] * (len(bodies) - 2)]


def test_activations_are_let_go_behind_their_last_reader(small: Network, digits: UInt8) -> None:
    rebuild = rebuilding(small, digits)
    rebuild.take(0, sent(computed(small, digits)))
    last = last_uses(small)
    while isinstance(built := rebuild.next(), Rebuilt):
        alive = {i for i in rebuild._values if last.get(i, len(small.layers)) < built.index}
        assert not alive, f"behind layer {built.index}"


def test_what_cannot_be_is_refused_and_stays_refused(small: Network, digits: UInt8) -> None:
    found = computed(small, digits)
    first, second, *_, last = sent(found)
    rebuild = rebuilding(small, digits)
    with pytest.raises(ValueError, match="segment 1000, the next one is 0"):
        rebuild.take(1000, [first])
    rebuild.take(0, [second])
    for _ in range(2):
        with pytest.raises(ValueError, match=f"layer {second.index} came where layer {first.index}"):
            rebuild.next()
    rebuild = rebuilding(small, digits)
    rebuild.take(0, [*sent(found), SentLayer(last.index + 1, 0, b"\0")])
    while rebuild._done < last.index:
        assert isinstance(rebuild.next(), Rebuilt)
    with pytest.raises(ValueError, match=f"layer {last.index + 1} came behind the last"):
        rebuild.next()
    rebuild = rebuilding(small, digits)
    rebuild.take(0, [SentLayer(first.index, 7, layers.encode(found[first.index][0], None, "direct"))])
    with pytest.raises(ValueError, match="sent whole"):
        rebuild.next()


def test_a_device_that_runs_short_is_told_once_all_up_to_there_is_right(small: Network, digits: UInt8) -> None:
    bodies = sent(computed(small, digits))
    rebuild = rebuilding(small, digits)
    assert rebuild.confirmed() is None
    rebuild.take(0, bodies[:2], confirm=True)
    assert isinstance(rebuild.next(), Rebuilt)
    assert rebuild.confirmed() is None, "the second layer is still to come"
    assert isinstance(rebuild.next(), Rebuilt)
    assert rebuild.confirmed() == bodies[1].index
    assert rebuild.confirmed() is None
