"""What the benchmark of signing measures is the envelope and nothing else."""

from __future__ import annotations

from benchmarks import signing


def test_an_envelope_costs_about_a_hundred_bytes_whatever_is_in_it() -> None:
    costs = signing.measure(times=2)
    assert costs[0].message == "an acknowledgement"
    assert all(60 < cost.added < 140 for cost in costs)
    assert max(cost.added for cost in costs) - min(cost.added for cost in costs) < 16
    assert costs[-1].nbytes > 16 << 20
    assert signing.table(costs).row_count == len(costs)
