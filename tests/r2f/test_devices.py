"""Several devices on one bus: a model for each is the one that it would get alone; what is refused before anything begins."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from rich.console import Console

from accelsim.datasets import load
from accelsim.faults import Rates
from accelsim.int8 import storage
from broker.launch import find_mosquitto, launch
from r2f import folders, inprocess, prepare, run
from r2f.devices import choosing, dividing
from r2f.devices import report as of_devices
from r2f.display import Display
from r2f.pipeline import Pipeline
from r2f.settings import Settings, SettingsError, parse
from services.bus import Bus
from services.bus.messages import Progress
from services.trainer import waiting
from services.trainer.core import fleet as fleets
from services.trainer.core import job as jobs
from services.trainer.core import ledger
from services.trainer.core import result as results
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.fleet import Fleet
from services.trainer.core.task import Recipe, Sgd
from tests.r2f import served
from tests.r2f.watching import Watching

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed (apt-get install mosquitto)"),
]

SETTINGS = Settings(
    network="digits_cnn",
    rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
    device="a,b,c",
    iterations=8,
    sgd=Sgd(rate=0.02),
    recipe=Recipe(corrections=2, selection=0, shift=1),  # the last is deployed: what is better depends on the processor
    evaluation_seeds=2,
    evaluation_samples=64,
    checkpoint_every=2,
    hosts=3,
    codecs=2,
)
TOGETHER = replace(SETTINGS, hosts=1)
"""The same run with one process of each service, where it is not one device's that is killed."""
DIGITS = load("digits")


@pytest.fixture(scope="module")
def make(weights: str) -> Callable[..., None]:
    """Makes the folder of a run of several devices."""

    def made(settings: Settings, folder: Path) -> None:
        with Display(Console(quiet=True)) as live:
            settings = replace(settings, weights=weights)
            prepare.prepare(settings, folder, live, choosing.fleet_of(settings))

    return made


@pytest.fixture(scope="module")
def prepared(make: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "own"
    make(SETTINGS, folder)
    return folder


@pytest.fixture(scope="module")
def alone(prepared: Path) -> dict[str, str]:
    """The digest of each device's model where there is no other device, and no bus."""
    network = storage.load(prepared / jobs.NETWORK)
    found = {}
    for device in "abc":
        done = inprocess.retrain(network, DIGITS, jobs.read(prepared / device))
        found[device] = storage.digest(done.network)
    assert len(set(found.values())) == 3, "each device has faults of its own"
    return found


def digests(folder: Path) -> dict[str, str]:
    return {device: results.read(folder / device).model_sha256 for device in "abc"}


def execute(prepared: Path, folder: Path, display: Watching, settings: Settings = SETTINGS) -> None:
    shutil.copytree(prepared, folder)
    asyncio.run(run.execute(settings, folder, display))


def test_each_device_gets_the_model_that_it_gets_alone(prepared: Path, alone: dict[str, str], tmp_path: Path) -> None:
    execute(prepared, tmp_path / "run", Watching(), TOGETHER)
    assert digests(tmp_path / "run") == alone
    found = run.finish(SETTINGS, tmp_path / "run")
    assert isinstance(found, of_devices.FleetReport)
    assert [(row.device, row.state, row.iterations) for row in found.devices] == [(name, "done", 8) for name in "abc"]
    assert {row.device: row.model_sha256 for row in found.devices} == alone
    assert of_devices.read(tmp_path / "run") == found
    console = Console(width=100)
    with console.capture() as said:
        console.print(of_devices.table(found))
    assert all(alone[device][:12] in said.get() for device in "abc")
    # Its folder is a run of its own, which goes the same way without the others.
    shutil.copytree(prepared / "b", tmp_path / "b")
    own = run.read_settings(tmp_path / "b")
    assert own.device == "b"
    assert served.retrained(tmp_path / "b") == results.read(tmp_path / "run" / "b")


def test_killed_agent_disturbs_nobody(prepared: Path, alone: dict[str, str], tmp_path: Path) -> None:
    killed: list[int] = []

    def each(pipeline: Pipeline, message: Progress) -> None:
        if not killed and message.step >= 8:
            killed.append(pipeline.pids["agent-1"])
            os.kill(killed[0], signal.SIGKILL)

    display = Watching(each)
    execute(prepared, tmp_path / "run", display)
    assert display.restarts == ["agent-1"]
    assert digests(tmp_path / "run") == alone
    for device, attempts in (("a", 1), ("c", 1)):
        rows = ledger.read(tmp_path / "run" / device / results.PROGRESS)
        assert {row.attempts for row in rows} == {attempts}, "nobody asked this device again"


def test_killed_trainer_and_codec_go_on(prepared: Path, alone: dict[str, str], tmp_path: Path) -> None:
    victims = {6: "trainer", 14: "codec-server-0"}

    def each(pipeline: Pipeline, message: Progress) -> None:
        for step in [step for step in victims if message.step >= step]:
            os.kill(pipeline.pids[victims.pop(step)], signal.SIGKILL)

    display = Watching(each)
    execute(prepared, tmp_path / "run", display, TOGETHER)
    assert sorted(display.restarts) == ["codec-server-0", "trainer"]
    assert digests(tmp_path / "run") == alone


def test_several_ranks_give_the_model_of_one(make: Callable[..., None], tmp_path: Path) -> None:
    """Replays shared by two processes, one of which is killed."""
    settings = replace(TOGETHER, device="a,b", recipe=replace(SETTINGS.recipe, chunks=4), ranks=2)
    folder = tmp_path / "run"
    make(settings, folder)
    network = storage.load(folder / jobs.NETWORK)
    wanted = {}
    for device in "ab":
        job = jobs.read(folder / device)
        assert job.recipe.chunks == 4
        wanted[device] = storage.digest(inprocess.retrain(network, DIGITS, job).network)
    killed: list[int] = []

    def each(pipeline: Pipeline, message: Progress) -> None:
        if not killed and message.step >= 8:
            killed.append(pipeline.pids["trainer-rank-1"])
            os.kill(killed[0], signal.SIGKILL)

    display = Watching(each)
    asyncio.run(run.execute(settings, folder, display))
    assert {"trainer", "trainer-rank-1"} <= set(display.restarts)
    assert {device: results.read(folder / device).model_sha256 for device in "ab"} == wanted


def test_one_device_that_gives_up_stops_no_other(prepared: Path, alone: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder)
    whole = jobs.read(folder / "b")
    jobs.write(folder / "b", replace(whole, data="0" * 16))
    asyncio.run(run.execute(TOGETHER, folder, Watching()))
    found = run.finish(SETTINGS, folder)
    assert isinstance(found, of_devices.FleetReport)
    (row,) = found.given_up
    assert (row.device, row.state) == ("b", "given up")
    assert "device 'b' has other classes or images of another size than this run" in row.why
    assert waiting.outcome(folder) == f"b: {row.why}"
    assert digests(folder) == alone | {"b": ""}
    # Mended, the run goes on with that device alone.
    jobs.write(folder / "b", whole)
    with Watching() as display:
        found = run.go_on(folder, display)
    assert isinstance(found, of_devices.FleetReport)
    assert found.given_up == []
    assert digests(folder) == alone


async def announced(url: str, names: list[str], trainers: list[str], during: Callable[[], object]) -> object:
    """What comes of a call while agents and trainers of these devices are on the bus."""
    buses = [Bus(url, "agent", name) for name in names] + [Bus(url, "trainer", name) for name in trainers]
    for bus in buses:
        await bus.__aenter__()
    try:
        for bus in buses[: len(names)]:
            await bus.announce(samples={"train": 1, "test": 1})
        return await asyncio.to_thread(during)
    finally:
        for bus in buses:
            await bus.__aexit__(None, None, None)


async def test_devices_of_a_pattern() -> None:
    async with launch() as running:
        settings = Settings(device="fleet-*", broker=running.url(), launch=False)

        def fleet_of(**changes: object) -> Fleet | None:
            return choosing.fleet_of(msgspec.structs.replace(settings, **changes))

        there = ["fleet-2", "fleet-1", "other"]
        found = await announced(running.url(), there, [], fleet_of)
        assert found == Fleet(sharing="own", devices=("fleet-1", "fleet-2"))
        found = await announced(running.url(), there, [], lambda: fleet_of(sharing="common"))
        assert found == Fleet(sharing="common", devices=("fleet-1", "fleet-2"), pattern="fleet-*")
        with pytest.raises(
            SettingsError, match=r"--device nobody-\*: no device .* matches; there are: fleet-1, fleet-2, other"
        ):
            await announced(running.url(), there, [], lambda: fleet_of(device="nobody-*"))
        with pytest.raises(SettingsError, match="--device fleet-2: another run has this device"):
            await announced(running.url(), there, ["fleet-2"], fleet_of)
        with pytest.raises(SettingsError, match="--device fleet-2: another run has this device"):
            await announced(running.url(), there, ["fleet-2"], lambda: fleet_of(device="fleet-1,fleet-2"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "a,b,a"}, "device a is listed twice"),
        ({"device": "a,,b"}, "'' is no name of a device"),
        ({"device": "a,b/c"}, "'b/c' is no name of a device"),
        ({"device": "fleet-[12]"}, r"'fleet-\[12\]' is no name of a device"),
        ({"device": "x" * 65}, "no name of a device.*at most 64"),
        ({"device": "fleet-*"}, "--device fleet-.*: a pattern finds devices that are announced on a broker"),
        ({"fleet": "common"}, "--fleet common: --device edge-0 is one device"),
        ({"device": "a,b", "link": "lora", "live": True}, "--live joins one device"),
        ({"device": "a,b", "hosts": 0}, "--hosts 0"),
        ({"device": "a,b", "fleet": "common", "labels": "server"}, "--labels server: with --fleet common"),
        ({"ranks": 4, "chunks": 2}, "--ranks 4: a batch is replayed in 2 chunks"),
        ({"ranks": 2, "chunks": 2, "trainer": False}, "--ranks 2: the trainer is started elsewhere"),
    ],
)
def test_what_is_refused(given: dict[str, object], said: str) -> None:
    def asked() -> None:
        settings = parse(given)
        choosing.fleet_of(settings)
        prepare.check(settings)

    with pytest.raises(SettingsError, match=said):
        asked()


def test_a_run_of_several_is_one_line_of_runs(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "run")
    (tmp_path / "run" / folders.BROKER).write_text("mqtt://127.0.0.1:1\n")
    (one,) = folders.all_runs(tmp_path)
    assert (one.state, one.iterations, one.total) == ("stopped", 0, 24)
    assert one.why == f"go on with: r2f retrain --resume {tmp_path / 'run'}"
    assert folders.broker_of(tmp_path / "run") == ("mqtt://127.0.0.1:1", "+"), "r2f tap shows all of them"
    for device in "abc":
        results.write(tmp_path / "run" / device, results.Result(model_sha256="0"))
    assert folders.all_runs(tmp_path)[0].state == "done"
    waiting.give_up(tmp_path / "run" / "b", ValueError("no power"))
    (one,) = folders.all_runs(tmp_path)
    assert one.state == "given up"
    assert one.why == f"b: no power; go on with: r2f retrain --resume {tmp_path / 'run'}"


def test_a_fleet_that_is_damaged(tmp_path: Path) -> None:
    assert fleets.read(tmp_path) is None
    for text, said in (
        ("{", "fleet.json"),
        ('{"sharing":"own","devices":[]}', r"fleet\.json.*devices"),
        ('{"sharing":"own","devices":["a","a"]}', "twice"),
        ('{"sharing":"own","devices":["../a"]}', r"fleet\.json.*devices"),
        ('{"sharing":"all","devices":["a"]}', r"fleet\.json.*sharing"),
    ):
        (tmp_path / fleets.FILE).write_text(text)
        with pytest.raises(ValueError, match=said):
            fleets.read(tmp_path)


def test_eight_devices_at_once(make: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of each service for all eight, and every device's model is right."""
    monkeypatch.setattr(dividing, "MORE_PATIENCE_S", 10.0)  # other tests may run beside it
    names = [f"fleet-{i}" for i in range(8)]
    few = replace(SETTINGS.recipe, selection=0)
    settings = replace(SETTINGS, device=",".join(names), iterations=4, recipe=few, hosts=2)
    make(settings, tmp_path / "run")
    display = Watching()
    asyncio.run(run.execute(settings, tmp_path / "run", display))
    assert display.pipeline is not None
    network = storage.load(tmp_path / "run" / jobs.NETWORK)
    for name in names:
        assert waiting.outcome(tmp_path / "run" / name) == "", name
        wanted = inprocess.retrain(network, DIGITS, jobs.read(tmp_path / "run" / name)).network
        assert results.read(tmp_path / "run" / name).model_sha256 == storage.digest(wanted)
    assert waiting.outcome(tmp_path / "run") == ""


def test_a_run_with_a_common_model_is_one_line_of_runs(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "run")
    fleet = fleets.read(tmp_path / "run")
    assert fleet is not None
    fleets.write(tmp_path / "run", replace(fleet, sharing="common"))
    (one,) = folders.all_runs(tmp_path)
    assert (one.state, one.before, one.after) == ("stopped", None, None)
    for device, before, after in (("a", 70.0, 90.0), ("b", 80.0, 92.0)):
        measured = [Evaluation(top1=[value], samples=10) for value in (before, after)]
        found = results.Result(iterations=8, faulty_before=measured[0], faulty_after=measured[1], model_sha256="0")
        results.write(tmp_path / "run" / device, found)
    results.write(tmp_path / "run", results.Result(model_sha256="0"))
    (one,) = folders.all_runs(tmp_path)
    assert (one.state, one.total, one.before, one.after) == ("done", 8, 75.0, 91.0)


@pytest.mark.parametrize("name", ["job.json", "fleet.json", "report.json", "logs", "lock", "steps.jsonl", "model.safetensors"])
def test_a_device_cannot_have_the_name_of_a_runs_file(name: str) -> None:
    with pytest.raises(ValueError, match=rf"device {name}: a run's folder has a file of that kind"):
        choosing.fleet_of(parse({"device": f"b,{name}"}))
