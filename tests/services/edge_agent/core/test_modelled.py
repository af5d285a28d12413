"""Modelled times of a segment against the timing model's own numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from accelsim.int8.network import INPUT, Conv, Network
from accelsim.timing import Array, layer_timing, port_seconds, vote_seconds
from services.edge_agent.core.forward import Executed, Segment
from services.edge_agent.core.modelled import times

ARRAY = Array()
LAYER = Conv(
    name="conv", inputs=(INPUT,), shape=(8, 8, 4), scale=1.0, weight=np.ones((4, 4, 3, 3), np.int8), bias=np.zeros(4, np.int32),
    weight_scale=np.ones(4, np.float32), multiplier=np.ones(4, np.float32), padding=(1, 1),
)  # fmt: skip
NETWORK = Network(
    name="one", input_shape=(8, 8, 4), input_scale=1.0, input_table=np.zeros((4, 256), np.int8), layers=(LAYER,)
)  # fmt: skip
RUN = np.zeros((3, 8, 8, 4), np.int8)


def test_tmr_is_all_beyond_the_first_execution() -> None:
    one = layer_timing(0, LAYER, (8, 8, 4), ARRAY, batch=3, executions=3)
    found = times(NETWORK, Segment([Executed(0, [RUN] * 3, protected=True)]), ARRAY, {})
    assert found == (one.forward_s + one.write_back_s, one.tmr_s, 1 / 3)


def test_a_further_run_is_redundancy_and_its_vote_too() -> None:
    one = layer_timing(0, LAYER, (8, 8, 4), ARRAY, batch=3, executions=1)
    again = Executed(0, [RUN], again=True)
    assert times(NETWORK, Segment([again]), ARRAY, {}) == (0.0, one.forward_s + one.write_back_s, 0.0)
    vote = replace(again, replicas=[RUN] * 3, ran=False)
    assert times(NETWORK, Segment([vote]), ARRAY, {}) == (0.0, vote_seconds(RUN.size, 3, ARRAY), 0.0)


def test_votes_at_ports_cost_an_execution_each() -> None:
    plain = times(NETWORK, Segment([Executed(0, [RUN] * 3)]), ARRAY, {})
    voted = times(NETWORK, Segment([Executed(0, [RUN] * 3)]), ARRAY, {0: ("weight", "input")})
    added = sum(port_seconds(LAYER, (8, 8, 4), ARRAY, site, batch=3) for site in ("weight", "input"))  # type: ignore[arg-type]
    assert voted.forward == plain.forward
    assert voted.tmr - plain.tmr == pytest.approx(3 * added)


def test_a_device_with_a_clock_of_its_own_is_measured() -> None:
    """Its executions share what it says; votes are the processor's, and modelled."""
    segment = Segment([Executed(0, [RUN] * 3)])
    found = times(NETWORK, segment, ARRAY, {}, measured=0.3)
    assert found.forward == pytest.approx(0.1)
    assert found.tmr == pytest.approx(0.2 + vote_seconds(RUN.size, 3, ARRAY))
    assert found.share == pytest.approx(1 / 3)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="its clock says"):
            times(NETWORK, segment, ARRAY, {}, measured=wrong)
