"""The learning rate from what was seen."""

from __future__ import annotations

import pytest

from services.trainer.core.rate import LONG, LONGEST, PART, Seen, settled
from services.trainer.core.task import Sgd


def test_is_a_part_of_polyaks_step_over_the_means() -> None:
    seen = Seen().and_(2.0, 4.0).and_(4.0, 8.0)
    rate, clip = settled(Sgd(), seen, 50)
    assert rate == pytest.approx(PART * (6 / 2) / (80 / 2))
    assert clip == pytest.approx(LONGEST * 40**0.5)


def test_follows_weights_of_any_size() -> None:
    """With weights k times as large gradients are k times smaller, and the step has to be k times larger."""
    small, large = settled(Sgd(), Seen().and_(1.0, 6.0), 9), settled(Sgd(), Seen().and_(1.0, 2.0), 9)
    assert large[0] * 2.0 == pytest.approx(3 * small[0] * 6.0)


def test_what_is_given_is_kept() -> None:
    assert settled(Sgd(rate=0.5, clip=3.0), Seen().and_(1.0, 1.0), 9) == (0.5, 3.0)


def test_without_a_gradient_there_is_nothing_to_learn() -> None:
    rate, clip = settled(Sgd(), Seen().and_(0.0, 0.0), 9)
    assert (rate, clip) == (0, 0)


def test_longer_runs_take_shorter_steps() -> None:
    seen = Seen().and_(1.0, 2.0)
    rates = [settled(Sgd(), seen, updates)[0] for updates in (1, LONG, 4 * LONG)]
    assert rates == pytest.approx([rates[0], rates[0], rates[0] / 2])
