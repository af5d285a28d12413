"""Amounts by hand: ties, spread, noise, rates between and beyond, chips that nothing helps."""

from __future__ import annotations

import pytest

from r2f.reduce import amounts
from r2f.reduce.amounts import Table
from r2f.reduce.course import Course, Point
from services.trainer.core.job import Job


def course(rate: float, *accuracies: float, error: float = 0.0, stops: tuple[int, ...] = (0, 4, 10, 20)) -> Course:
    points = tuple(Point(iterations=s, accuracy=a, error=error) for s, a in zip(stops, accuracies, strict=True))
    return Course(chip=f"{rate}", name="", rate=rate, damage=10 * rate, points=points)


def table(*courses: Course) -> Table:
    return Table(
        network="n", sha256="0", rows=32, columns=32, mapping=False, job=Job(session="s", device="d", iterations=20),
        an_epoch=100, images=500, clean=95.0, courses=courses,
    )  # fmt: skip


MEASURED = table(
    course(0.01, 92, 94, 94, 94),
    course(0.01, 88, 91, 92, 93),
    course(0.02, 80, 89, 91, 92),
    course(0.02, 85, 90, 92, 92),
    course(0.05, 40, 70, 85, 91),
    course(0.05, 50, 80, 91, 92),
)


def test_needed_is_from_where_it_stays_good_enough() -> None:
    assert amounts.needed(course(0.1, 80, 90, 89, 90), 90) == 20
    assert amounts.needed(course(0.1, 80, 90, 91, 90), 90) == 4
    assert amounts.needed(course(0.1, 90, 90, 91, 89), 90) is None
    assert amounts.reached(course(0.1, 80, 90, 89, 89), 90) == 4
    assert amounts.reached(course(0.1, 80, 81, 82, 83), 90) is None


def test_a_chip_with_faults_has_its_biases_corrected_however_good_it_looks() -> None:
    """And one without is left alone; a table that does not go as far asks for nothing."""
    light = table(course(0.01, 95, 95, 95, 95))
    assert amounts.least(light) == 4
    assert [amounts.by_rate(light, rate, 90).iterations for rate in (0, 0.01)] == [0, 4]
    assert (amounts.fixed(light, 90).iterations, amounts.by_damage(light, 0.1, 0.01, 90).iterations) == (4, 4)
    assert amounts.reached(light.courses[0], 90, least=4) == 4
    short = table(course(0.01, 95, 95, stops=(0, 2)))
    assert (amounts.least(short), amounts.by_rate(short, 0.01, 90).iterations) == (0, 0)


def test_noise_is_not_taken_for_good_enough() -> None:
    noisy = course(0.1, 88, 90.5, 91, 92, error=0.7)  # 0.99 on as many other images
    assert amounts.needed(noisy, 90, sure=0) == 4
    assert amounts.needed(noisy, 90) == 20
    assert amounts.needed(noisy, 90, sure=1) == 10
    assert amounts.needed(noisy, 90, sure=2) == 20
    assert amounts.reached(noisy, 90, sure=2.5) is None


def test_in_doubt_it_is_the_largest_amount() -> None:
    doubtful = course(0.1, 80, 85, 89, 90.5, error=0.7)
    assert amounts.needed(doubtful, 90) == 20
    assert amounts.needed(course(0.1, 80, 85, 91, 89.9, error=0.7), 90) is None
    found = amounts.by_rate(table(*MEASURED.courses, doubtful), 0.1, 90)
    assert found.iterations == 20
    assert amounts.needed(doubtful, 90, least=30) is None


def test_fixed_is_what_the_worst_needs() -> None:
    assert amounts.fixed(MEASURED, 90).iterations == 20
    assert amounts.fixed(MEASURED, 80).iterations == 10
    assert amounts.fixed(table(*MEASURED.courses, course(0.1, 10, 20, 30, 40)), 90).iterations == 20
    hopeless = amounts.fixed(MEASURED, 99)
    assert hopeless.iterations is None
    assert hopeless.why == "no chip of the table reaches 99 %"


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.0, 0), (0.005, 4), (0.01, 4), (0.011, 10), (0.02, 10), (0.03, 20), (0.05, 20), (0.06, None)]
)
def test_by_rate_the_next_higher_one_and_its_worst_map(rate: float, expected: int | None) -> None:
    assert amounts.by_rate(MEASURED, rate, 90).iterations == expected


def test_a_share_of_the_maps_may_be_enough() -> None:
    assert amounts.by_rate(MEASURED, 0.02, 90, share=0.5).iterations == 4
    assert amounts.by_rate(MEASURED, 0.05, 90, share=0.5).iterations == 10
    with pytest.raises(ValueError, match="share 0: expected a share of the maps"):
        amounts.by_rate(MEASURED, 0.05, 90, share=0)


def test_no_rate_gets_less_than_a_smaller_one() -> None:
    bumpy = table(course(0.01, 80, 85, 91, 91), course(0.02, 90, 91, 91, 91), course(0.03, 80, 85, 89, 90))
    assert amounts.steps(bumpy, "rate", 90) == [(0.01, 10), (0.02, 10), (0.03, 20)]


def test_beyond_help_and_beyond_the_table_are_named() -> None:
    worn = table(*MEASURED.courses, course(0.1, 10, 20, 30, 40), course(0.2, 90, 90, 90, 90))
    for rate in (0.06, 0.1, 0.15, 0.2):
        found = amounts.by_rate(worn, rate, 90)
        assert found.iterations is None
        assert found.why.startswith("beyond help: at ")
    assert amounts.by_rate(MEASURED, 0.06, 90).why == (
        "beyond the table, which ends at 5 % faulty elements: 6 % faulty elements; measure worse chips"
    )


def test_by_map_the_chips_own_first_iterations_decide() -> None:
    begun = (0, 4)
    good = course(0.05, 85, 90, stops=begun)
    assert amounts.by_map(MEASURED, good, 90, first=4).iterations == 4
    lucky = table(*MEASURED.courses, course(0.02, 85, 91, 89, 92))
    assert amounts.by_map(lucky, good, 90, first=4).iterations == 20, "one of the table's was as good and did not stay so"
    assert amounts.by_map(MEASURED, course(0.05, 91, 92, stops=begun), 90, first=4).iterations == 4, "biases are corrected"
    assert amounts.by_map(MEASURED, course(0.05, 70, 89.5, stops=begun), 90, first=4).iterations == 10
    assert amounts.by_map(MEASURED, course(0.05, 70, 75, stops=begun), 90, first=4).iterations == 20
    worst = amounts.by_map(MEASURED, course(0.05, 30, 60, stops=begun), 90, first=4)
    assert worst.iterations == 20
    assert "worse than any of the table" in worst.why
    assert amounts.by_map(MEASURED, course(0.09, 30, 60, stops=begun), 90, first=4).iterations is None


def test_by_map_by_the_saliency_that_it_takes() -> None:
    light = course(0.05, 70, 75, stops=(0, 4))
    assert amounts.score(light, "damage") == 0.5
    assert amounts.by_damage(MEASURED, 0.1, 0.05, 90).iterations == 4
    assert amounts.by_damage(MEASURED, 0.4, 0.05, 90).iterations == 20
    assert amounts.by_damage(MEASURED, 0.6, 0.05, 90).why.startswith("0.6 of the saliency lost, worse than any of the table")
    assert amounts.by_damage(MEASURED, 0.6, 0.06, 90).iterations is None
    with pytest.raises(ValueError, match="it was not judged at 10 iterations, only at 0, 4"):
        amounts.by_map(MEASURED, light, 90, first=10)
