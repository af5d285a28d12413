"""Messages to what is watched, hostile ones too: through the same decoder as from the bus."""

from __future__ import annotations

import math

import pytest
import structlog

from accelsim.faults import Rates
from services.bus.encoding import MessageError
from services.bus.messages import (
    LayerVotes,
    Memory,
    Message,
    Progress,
    SetMode,
    State,
)
from services.monitor import watching
from services.monitor.core import watched as bounds
from services.monitor.core.watched import Watched
from services.scheme import Scheme
from services.trainer.core.evaluation import FIRST
from tests.services.monitor.talk import iteration, play, run_of, tell, timing, votes


def test_a_device_as_it_says() -> None:
    watched = Watched()
    tell(watched, "state/agent", State(session="", service="agent", online=True, version=3, samples={"train": 9, "test": 2}))
    tell(watched, "event/memory", Memory(session="", service="agent", resident_bytes=5000))
    tell(watched, "state/voter", State(session="", service="voter", online=False))
    scheme = Scheme(protected=(1, 4), referee=False, replicas=5)
    tell(watched, "down/mode", SetMode(session="s", seq=1, mode="training", rates=Rates(weight=1e-3), seed=7, scheme=scheme))
    device = watched.devices["d"]
    agent = device.services["agent"]
    assert (agent.online, agent.version, agent.memory_bytes, device.services["voter"].online) == (True, 3, 5000, False)
    assert device.samples == {"train": 9, "test": 2}
    setting = run_of(watched).setting
    assert setting == device.setting
    assert (setting.rates["weight"], setting.rates["input"], setting.protected, setting.executions) == (1e-3, 0.0, [1, 4], 5)
    tell(watched, "down/mode", SetMode(session="s", seq=2, mode="inference"))
    assert run_of(watched).setting.rates["weight"] == 1e-3, "a run's setting is that of its training"
    assert device.setting is not None
    assert device.setting.mode == "inference"


def test_iterations_are_counted_once_and_when_their_events_are_here() -> None:
    watched = Watched()
    play(watched, range(5))
    run = run_of(watched)
    assert (run.totals.iterations, run.done, run.iterations, run.network) == (3, 5, 10, "net")
    assert [p.loss for p in watched.history("d", "s")] == [0, 1, 2, 3, 4], "those whose events are coming are shown too"
    told = [p.iteration for *_, p in watched.recent].count(2)
    play(watched, range(2, 5))  # a run that was resumed does the same again
    assert [p.iteration for *_, p in watched.recent].count(2) == told, "the point of one that is counted stays"
    tell(watched, "event/progress", Progress(session="s", phase="done", step=5, steps=5, value=1))
    assert (run.totals.iterations, run.totals.up, run.totals.down, run.totals.up_direct) == (5, 500, 150, 5 * 1064)
    assert (run.totals.down_direct, run.totals.repaired, run.totals.mismatched) == (4500, 25, 3500)
    assert run.totals.host_s["compress"] == 5
    layer = run.layers[0]
    assert (layer.elements, layer.agreed, layer.errors, layer.repaired, run.layers[2].unfaithful) == (1500, 1450, 30, 25, 5)
    assert watched.totals["d"].iterations == 5


def test_who_comes_late_counts_from_the_first_whole_iteration() -> None:
    watched = Watched()
    play(watched, range(7, 12))
    tell(watched, "event/progress", Progress(session="s", phase="done", step=5, steps=5, value=1))
    run = run_of(watched)
    assert not run.complete
    assert run.totals.iterations == 4, "of the seventh some events had passed"


def test_evaluations() -> None:
    watched = Watched()
    for step, value in ((1, 70.0), (3, 72.0)):
        tell(watched, "event/progress", Progress(session="s", phase="before", step=step, steps=3, value=value))
    tell(watched, "event/progress", Progress(session="s", phase="before", step=1, steps=1, value=98.0, faults=False))
    tell(watched, "event/forward", timing(FIRST + 3, "forward"))
    run = run_of(watched)
    assert [(s.phase, s.faults, s.values) for s in run.scores] == [
        ("before", True, [70.0, None, 72.0]), ("before", False, [98.0]),
    ]  # fmt: skip
    assert watched.history("d", "s") == []


LIES: list[tuple[str, Message]] = [
    ("event/compress", timing(0, host_s=math.nan)),
    ("event/compress", timing(0, host_s=math.inf)),
    ("event/compress", timing(0, bytes=-5)),
    ("event/compress", timing(0, bytes=2**62)),
    ("event/compress", timing(0, segment=2**40)),
    ("event/progress", Progress(session="s", phase="train", step=-1, steps=1, value=0)),
    ("event/progress", Progress(session="s", phase="train", step=1, steps=1, value=math.nan)),
    ("event/iteration", iteration(0, loss=math.nan)),
    ("event/iteration", iteration(2**40)),
    ("event/iteration", iteration(0, model_bytes=2**53)),
    ("event/votes", votes(0, layers=(LayerVotes(0, 10, 3, 11, 0),))),
    ("event/votes", votes(0, layers=(LayerVotes(0, 10, 3, 0, 11),))),
    ("event/memory", Memory(session="", service="<b>no name</b>", resident_bytes=1)),
    ("event/memory", Memory(session="", service="agent", resident_bytes=2**53)),
]


@pytest.mark.parametrize(("name", "lie"), LIES, ids=lambda one: one if isinstance(one, str) else repr(one)[:60])
def test_what_makes_no_sense_is_left_out_and_counted(name: str, lie: Message) -> None:
    watched = Watched()
    try:
        tell(watched, name, lie)
    except MessageError:
        pass  # the bus itself refuses and counts it
    else:
        assert watched.refused == 1
    play(watched, range(3))
    assert run_of(watched).totals.iterations == 1, "and the next message is taken"


def test_everything_has_a_bound() -> None:
    watched = Watched()
    for number in range(bounds.DEVICES + 20):
        tell(watched, "state/agent", State(session="", service="agent", online=True), device=f"d{number}")
    assert (len(watched.devices), watched.refused) == (bounds.DEVICES, 20)
    for number in range(bounds.SERVICES + 5):
        tell(watched, f"state/s{number}", State(session="", service="x", online=True), device="d0")
    assert len(watched.devices["d0"].services) == bounds.SERVICES
    for number in range(bounds.RUNS + 30):
        message = Progress(session=f"s{number}", phase="train", step=1, steps=2, value=1.0)
        tell(watched, "event/progress", message, device=f"d{number % 3}", now=float(number))
    runs = [session for device in watched.devices.values() for session in device.runs]
    assert len(runs) == len(watched._progress) == bounds.RUNS
    assert "s0" not in runs, "the one that was silent for longest goes"
    assert f"s{bounds.RUNS + 29}" in runs
    for number in range(4 * bounds.PENDING):
        tell(watched, "event/compress", timing(number), device="d0")
    many = tuple(LayerVotes(i, 1, 3, 1, 0) for i in range(4096))
    for number in range(60, 66):
        tell(watched, "event/votes", votes(number, layers=many), device="d0")
        tell(watched, "event/iteration", iteration(number, layers=()), device="d0")
    pending = watched._progress["d0", "s"].pending
    assert len(pending) <= bounds.PENDING
    assert len(run_of(watched, device="d0").layers) <= bounds.LAYERS
    for number in range(66, 66 + 2 * bounds.RECENT):
        tell(watched, "event/iteration", iteration(number), device="d0")
    assert len(watched.recent) == bounds.RECENT
    assert watched.lost > 0, "a page that is further behind is told all again"


def test_a_mistake_of_ours_on_one_message_ends_no_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    with monkeypatch.context() as patch:
        patch.setattr(watching, "_take", lambda *_: 1 / 0)
        with structlog.testing.capture_logs() as logged:
            play(watched, range(1))
    assert logged[0]["event"] == "message failed"
    assert watched.refused == len(logged)
    play(watched, range(3))
    assert run_of(watched).totals.iterations == 1
