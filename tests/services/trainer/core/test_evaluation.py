"""Which samples are looked at, and what counts as a right answer."""

from __future__ import annotations

import numpy as np
import pytest

from accelsim.faults import Rates
from services.trainer.core import evaluation
from services.trainer.core.evaluation import Counts, Evaluation


def test_top_one_and_five_against_a_sort_that_puts_the_lowest_class_first_among_equals() -> None:
    random = np.random.default_rng(0)
    outputs = random.integers(-4, 4, (200, 1, 1, 9)).astype(np.int8)  # few values, so many ties
    labels = random.integers(0, 9, 200)
    order = np.array([sorted(range(9), key=lambda c: (-int(row[c]), c)) for row in outputs.reshape(200, 9)])
    found = evaluation.count(outputs, labels)
    assert found == Counts(200, int((order[:, 0] == labels).sum()), int((order[:, :5] == labels[:, None]).any(axis=1).sum()))
    assert found.top1 == int((outputs.reshape(200, 9).argmax(axis=1) == labels).sum())
    assert found.top5 is not None
    assert 0 < found.top1 < found.top5 < 200


@pytest.mark.parametrize(("classes", "top5"), [(2, None), (5, None), (6, 3)])
def test_five_classes_or_fewer_have_no_top_five(classes: int, top5: int | None) -> None:
    outputs = np.zeros((3, 1, 1, classes), np.int8)
    assert evaluation.count(outputs, np.zeros(3, np.int64)).top5 == top5
    counts = [[evaluation.count(outputs, np.zeros(3, np.int64))]]
    assert evaluation.accuracy(counts) == Evaluation(samples=3, top1=[100.0], top5=[100.0] if top5 else [])


@pytest.mark.parametrize("labels", [[0], [0, 3], [-1, 0], [[0], [1]]])
def test_labels_that_do_not_fit_are_named(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="evaluation: labels"):
        evaluation.count(np.zeros((2, 1, 1, 3), np.int8), np.array(labels))


def test_passes_take_every_sample_once_a_seed() -> None:
    samples = np.array([3, 5, 8, 9, 11])
    found = list(evaluation.passes(samples, (7, 7), batch=2))
    assert [(p.run, p.seed, p.iteration - evaluation.FIRST, p.samples.tolist()) for p in found] == [
        (run, 7, number, part) for run in (0, 1) for number, part in enumerate(([3, 5], [8, 9], [11]))
    ]
    counts = [[Counts(2, 1, 2), Counts(1, 1, 1)], [Counts(2, 0, 0), Counts(1, 0, 1)]]
    found = evaluation.accuracy(counts)
    assert found.top1 == pytest.approx([200 / 3, 0])
    assert found.top5 == pytest.approx([100, 100 / 3])


@pytest.mark.parametrize(
    ("iteration", "number"),
    [(-1, None), (0, None), (evaluation.FIRST - 1, None), (evaluation.FIRST, 1), (evaluation.FIRST + 7, 8)],
)
def test_a_number_says_which_pass_it_is_of(iteration: int, number: int | None) -> None:
    assert evaluation.pass_of(iteration) == number


def test_without_faults_one_seed_tells_all() -> None:
    assert evaluation.seeds_of(Rates(), (1, 2)) == (1,)
    assert evaluation.seeds_of(Rates(weight=1e-9), (1, 2)) == (1, 2)


def test_outputs_that_are_no_numbers_are_not_right() -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            evaluation.count(np.full((2, 1, 1, 7), value, np.float32), np.zeros(2, np.int64))
