"""Telemetry and attributes of a device, from what its messages say."""

from __future__ import annotations

import math

from accelsim.faults import Rates
from services.bus.messages import Timing
from services.scheme import Scheme
from services.thingsboard.core import watched
from services.thingsboard.core.watched import Point, Watched
from services.trainer.core.evaluation import FIRST


def timing(stage: str, iteration: int, **fields: float) -> Timing:
    return Timing(session="s", stage=stage, iteration=iteration, **{"host_s": 0.0, **fields})  # type: ignore[arg-type]


def test_a_second_of_stages_is_one_point_with_sums_of_bytes_and_the_longest_times() -> None:
    of = Watched()
    assert watched.timing(of, timing("forward", 3, host_s=0.25, device_s=0.5), 1000) == []
    assert watched.timing(of, timing("compress", 3, host_s=0.5, bytes=10), 1400) == []
    assert watched.timing(of, timing("compress", 4, host_s=0.125, bytes=20), 1999) == []
    (point,) = watched.timing(of, timing("compress", 5, host_s=1.0, bytes=1), 2000)
    assert point == Point(
        1000,
        {"forward_host_s": 0.25, "forward_device_s": 0.5, "iteration": 4, "compress_host_s": 0.5, "compress_bytes": 30},
    )
    assert watched.due(of, 2500) == []
    assert watched.due(of, 2500, at_once=True)[0].values["compress_bytes"] == 1
    assert watched.due(of, 9999) == []


def test_passes_of_an_evaluation_are_no_iterations() -> None:
    of = Watched()
    watched.timing(of, timing("forward", FIRST + 2, host_s=0.25), 1000)
    (point,) = watched.due(of, 2000)
    assert point.values == {"forward_host_s": 0.25, "evaluation_pass": 3}


def test_times_that_are_no_numbers_are_left_out() -> None:
    of = Watched()
    watched.timing(of, timing("forward", 1, host_s=math.nan, device_s=math.inf), 1000)
    assert watched.due(of, 2000)[0].values == {"iteration": 1}
    point = watched.progress(of, "s", "train", 1, 2, math.nan, math.inf, True, 1)
    assert point.values == {"phase": "train", "step": 1, "steps": 2}


def test_the_mean_of_an_evaluation_is_told_when_every_seed_was_heard() -> None:
    of = Watched()

    def told(session: str, step: int, value: float, faults: bool = True) -> Point:
        return watched.progress(of, session, "before", step, 3, value, 0.0, faults, 1)

    assert told("a", 1, 90.0).values["accuracy_before_seed"] == 90.0
    assert "accuracy_before" not in told("a", 3, 60.0).values
    assert told("a", 1, 10.0, faults=False).values["accuracy_before_no_faults_seed"] == 10.0
    assert told("a", 2, 60.0).values["accuracy_before"] == 70.0
    # Another run begins anew; one of which a seed was missed has no mean.
    assert "accuracy_before" not in told("b", 2, 60.0).values
    assert "accuracy_before" not in told("b", 3, 60.0).values


def test_another_metric_than_top_1_is_no_accuracy() -> None:
    of = Watched()
    point = watched.progress(of, "a", "before", 1, 1, 31.5, 0.0, True, 1, "psnr")
    assert point.values == {"phase": "before", "step": 1, "steps": 1, "psnr_before_seed": 31.5, "psnr_before": 31.5}
    assert watched.progress(of, "a", "done", 9, 9, 33.0, 0.0, True, 2, "psnr").values["psnr_after"] == 33.0


def test_points_of_one_millisecond_are_kept_apart() -> None:
    of = Watched()
    times = [watched.progress(of, "s", "train", step, 9, 1.0, 1.0, True, 5).ts for step in range(3)]
    assert times == [5, 6, 7]


def test_ids_are_prefixed_and_services_bounded() -> None:
    of = Watched()
    found = watched.state(of, "agent", True, "12345678", 3, {"train": 5, "test": 2, "other": 1})
    assert found == {
        "agent_online": True,
        "agent_boot": "b-12345678",
        "model_version": 3,
        "samples_train": 5,
        "samples_test": 2,
    }
    for number in range(1000):
        watched.state(of, f"service{number}", True, "", 0, {})
    assert sum(key.endswith("_online") for key in of.attributes) == watched.SERVICES
    assert watched.state(of, "agent", False, "12345678", 0, {})["agent_online"] is False
    assert of.attributes["model_version"] == 3


def test_how_a_device_was_told_to_run() -> None:
    scheme = Scheme(codec="golden", replicas=5, protected=(0, 4), theta=1 / 3)
    found = watched.mode(Watched(), "run", "training", Rates(input=1e-3), 7, scheme, b"map")
    assert found["effective_theta"] == 0.333333333
    assert (found["effective_codec"], found["effective_replicas"], found["effective_protected"]) == ("golden", 5, [0, 4])
    assert (found["effective_ber_input"], found["effective_ber_accumulator"], found["known_faults"]) == (1e-3, 0.0, True)
    chained = watched.mode(Watched(), "run", "training", Rates(), 7, Scheme(), b"")
    assert chained["effective_replicas"] == 0  # the referee chooses
