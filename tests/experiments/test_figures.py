"""The figures' arithmetic, on costs that are easy to check by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest

from experiments import fig6_time, fig7_bytes, wire_cost
from experiments.wire_cost import BERS, LINKS, Cost, Method, Stages

METHODS: tuple[Method, ...] = ("drm", "aprm80", "aprm60", "aprm50", "lossless", "jpeg")


def cost(network: str, ber: float, link: str, method: Method) -> Cost:
    """Direct takes 100 s and 1000 bytes, the paper's method half of that, ours 4 and 2 %."""
    part = {"drm": 1.0, "lossless": 0.04, "jpeg": 0.02}.get(method, 0.5)
    stages = Stages(
        forward=10 * part,
        tmr=0,
        increment=0,
        coding=0,
        uplink=80 * part,
        backward=10 * part,
        downlink=0,
        overlapped=90 * part,
    )
    return Cost(
        network=network,
        random_weights=network == "A",
        ber=ber,
        link=link,
        method=method,
        layers_bytes=int(900 * part),
        input_bytes=int(100 * part),
        model_bytes=10,
        bound_bytes=1.0,
        mismatched_share=0.0,
        round_trips=0,
        referee_share=0.0,
        executions=3.0,
        layers_direct=0,
        stages=stages,
    )


COSTS = [cost(n, ber, link, method) for n in ("A", "B") for ber in BERS for link in LINKS for method in METHODS]


def test_reductions_are_shares_of_directs_time() -> None:
    found = fig6_time.reductions(COSTS, ("hspa",))
    assert found["APRM-60%"][1e-5] == pytest.approx(0.5)
    assert found["ours"][1e-4] == pytest.approx(0.96)
    assert found["ours, JPEG 90, overlapped"][1e-6] == pytest.approx(0.982)


def test_ratios_are_shares_of_directs_bytes() -> None:
    found = fig7_bytes.ratios(COSTS)
    assert found["A", 1e-5, "aprm80"] == (0.5, 0.5)
    assert found["B", 1e-6, "lossless"] == (0.04, 0.04)


@pytest.mark.parametrize(("module", "name"), [(fig6_time, "fig6_time"), (fig7_bytes, "fig7_bytes")])
def test_figures_are_written(module: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = tmp_path / "measured.json"
    measured.write_bytes(msgspec.json.encode(COSTS))
    assert wire_cost.load(measured) == COSTS
    monkeypatch.setattr("sys.argv", [name, "--measured", str(measured), "--out", str(tmp_path)])
    module.main()  # type: ignore[attr-defined]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / f"{name}.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= len(BERS) * 2 * len(METHODS)


def test_overlapping_stages_take_as_long_as_the_slowest_and_the_way_to_it() -> None:
    # Device 1 s a layer, link 3 s, server 1 s: the link is busy from second 1 to 10.
    assert wire_cost._pipelined([1, 1, 1], [3, 3, 3], [1, 1, 1]) == 11
    assert wire_cost._pipelined([5, 5], [1, 1], [0, 0]) == 11
    assert wire_cost._pipelined([0.0], [0.0], [0.0]) == 0
