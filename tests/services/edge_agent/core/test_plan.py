"""What a device runs under each scheme."""

from __future__ import annotations

import pytest

from services.edge_agent.core import referee
from services.edge_agent.core.plan import Plan, plan_of, thresholded
from services.scheme import Scheme


@pytest.mark.parametrize(
    ("scheme", "plan"),
    [
        (Scheme(codec="direct", replicas=7), Plan(replicas=1)),
        (Scheme(codec="direct", protected=(2, 0)), Plan(replicas=1, protected=frozenset({0, 2}))),
        (Scheme(), Plan(replicas=3, referee=True)),
        (Scheme(referee=False, replicas=5), Plan(replicas=5)),
        (Scheme(uplink_bits_per_s=50e3), Plan(replicas=3, referee=True, longest=referee.short(50e3))),
        (Scheme(codec="golden", redundancy="network"), Plan(replicas=3, beside="network", direct=frozenset({4}))),
    ],
)
def test_training(scheme: Scheme, plan: Plan) -> None:
    assert plan_of(scheme, training=True, direct=frozenset({4}) if plan.beside else frozenset()) == plan
    inference = plan_of(scheme, training=False)
    assert inference == Plan(replicas=1, protected=frozenset(scheme.protected))


def test_beside_a_tmr_pass_nothing_is_protected() -> None:
    with pytest.raises(ValueError, match="with codec golden no layers can be protected"):
        plan_of(Scheme(codec="golden", protected=(1,)), training=True)


def test_only_the_golden_codec_has_a_threshold() -> None:
    schemes = [Scheme(codec=codec, theta=0.5) for codec in ("direct", "golden", "chained")]
    assert [thresholded(scheme) for scheme in schemes] == [False, True, False]
    assert not thresholded(Scheme(codec="golden", theta=0))
