"""Which samples are looked at, and what counts as a right answer."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

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


def references(metric: str, values: np.ndarray, **units: float) -> evaluation.Reference:
    return evaluation.Reference(metric, values, **units)  # type: ignore[arg-type]


def test_psnr_is_its_formula_in_the_units_of_the_output() -> None:
    """Targets are bytes of -1..1, outputs int8 steps of 1/100."""
    random = np.random.default_rng(0)
    outputs, targets = random.integers(-100, 100, (3, 8, 9, 3)).astype(np.int8), random.integers(0, 256, (3, 8, 9, 3), np.uint8)
    found = evaluation.measure(outputs, 0.01, references("psnr", targets, scale=2 / 255, zero=-1.0, black=-1.0, white=1.0))
    error = (outputs * 0.01 - (targets * (2 / 255) - 1)) / 2
    np.testing.assert_allclose(found.scores, -10 * np.log10((error**2).mean(axis=(1, 2, 3))))
    whole = evaluation.accuracy([[found, found], [found, found]])
    assert whole.psnr == pytest.approx([found.scores.mean()] * 2)
    assert (whole.samples, whole.top1, whole.of("psnr")) == (6, [], whole.psnr)
    assert whole.images == pytest.approx([*found.scores, *found.scores])


def test_an_image_that_is_right_has_the_highest_psnr_that_bytes_tell_and_an_ssim_of_one() -> None:
    outputs = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    same = evaluation.measure(outputs, 1 / 255, references("psnr", outputs, scale=1 / 255))
    assert same.scores == pytest.approx(58.92, abs=0.01)
    assert evaluation.measure(outputs, 1 / 255, references("ssim", outputs, scale=1 / 255)).scores == pytest.approx(1)
    other = evaluation.measure(255 - outputs, 1 / 255, references("ssim", outputs, scale=1 / 255))
    assert (other.scores < 0.1).all()


@pytest.mark.parametrize("as_outputs", [False, True])
def test_mean_intersection_over_union_is_scikit_learns(as_outputs: bool) -> None:
    random = np.random.default_rng(0)
    outputs = random.integers(0, 256, (5, 8, 9, 6), np.uint8)
    truth = random.integers(0, 256, (5, 8, 9, 6), np.uint8)
    truth[..., 3] = 0
    outputs[..., 3] = 0  # class 3 is nowhere
    masks = truth.argmax(axis=3)
    found = evaluation.measure(outputs, 1.0, references("miou", truth if as_outputs else masks.astype(np.uint8)))
    answers = outputs.argmax(axis=3)
    for got, right, answer in zip(found.scores, masks, answers, strict=True):
        assert got == pytest.approx(100 * jaccard_score(right.reshape(-1), answer.reshape(-1), average="macro"))
    whole = evaluation.accuracy([[found]])
    assert whole.miou == pytest.approx([100 * jaccard_score(masks.reshape(-1), answers.reshape(-1), average="macro")])


def test_what_cannot_be_measured_is_named() -> None:
    outputs = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"outputs of shape \(2, 8, 8, 3\), held against \(2, 8, 8, 1\)"):
        evaluation.measure(outputs, 1.0, references("psnr", outputs[..., :1]))
    with pytest.raises(ValueError, match="masks hold 0 to 3, the network has 3 classes"):
        evaluation.measure(outputs, 1.0, references("miou", np.arange(4, dtype=np.uint8).repeat(32).reshape(2, 8, 8)))
    with pytest.raises(ValueError, match="not finite"):
        evaluation.measure(np.full((1, 8, 8, 1), np.nan, np.float32), 1.0, references("psnr", outputs[:1, ..., :1]))
    with pytest.raises(ValueError, match="psnr was not measured"):
        Evaluation(samples=1, top1=[1.0]).of("psnr")
