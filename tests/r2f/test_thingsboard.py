"""A run beside a bridge to ThingsBoard: told right, and the same model whatever ThingsBoard does."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from accelsim.faults import Rates
from broker.child import environment, python
from broker.launch import find_mosquitto, free_port
from r2f import prepare, run
from r2f.display import Display
from r2f.pipeline import running
from r2f.settings import Settings
from services.bus import Bus
from services.bus.messages import Progress, Timing
from services.trainer.core import ledger
from services.trainer.core import result as results
from services.trainer.core.task import Recipe, Sgd
from tests.r2f import served
from tests.services.thingsboard.bridging import until
from tests.services.thingsboard.standin import Standin

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed (apt-get install mosquitto)"),
]

SETTINGS = Settings(
    network="digits_cnn",
    rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
    iterations=10,
    sgd=Sgd(rate=0.02),
    recipe=Recipe(corrections=2, selection=64, accumulate=2, shift=1),
    evaluation_seeds=2,
    evaluation_samples=64,
    checkpoint_every=4,
    embedded=False,
)


class Watching(Display):
    """Calls a function with every step of the training."""

    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__(Console(quiet=True))
        self.step = step

    def progress(self, message: Progress) -> None:
        if message.phase == "train":
            self.step(message.step)


@pytest.fixture(scope="module")
def prepared(prepare: Callable[[Settings, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "prepared"
    prepare(SETTINGS, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> results.Result:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(prepared, folder)
    return served.retrained(folder)


async def beside(
    prepared: Path,
    folder: Path,
    tb: Standin,
    disturb: Callable[[int], Awaitable[None]] | None = None,
    token: str = "TOKEN",
    heard: list[int] | None = None,
    before: Callable[[], bool] | None = None,
) -> tuple[results.Result, int | None, str]:
    """A run on a broker of its own with a bridge, commands and all, beside it; the bridge's exit code where it had ended, and
    what it logged. ``heard`` is given the bytes of every event of a stage. ``before``: the device's services are there first,
    and the run begins when it is true."""
    shutil.copytree(prepared, folder)
    port = free_port()
    url = f"mqtt://127.0.0.1:{port}"
    (folder / "token").write_text(token)
    tasks: list[asyncio.Task[None]] = []

    async def hear(bus: Bus) -> None:
        await bus.subscribe("event/+")
        async for _, message in bus:
            if isinstance(message, Timing) and heard is not None:
                heard.append(message.bytes)

    def step(number: int) -> None:
        if disturb is not None:
            tasks.append(asyncio.ensure_future(disturb(number)))

    broker = await asyncio.create_subprocess_exec(*python("broker", "--port", str(port)), env=environment(), stdout=-3)
    with (folder / "bridge.log").open("wb") as log:
        bridge = await asyncio.create_subprocess_exec(
            *python("services.thingsboard", "--thingsboard", f"mqtt://127.0.0.1:{tb.port}"),
            *("--token-file", str(folder / "token"), "--broker", url, "--commands", url),
            env=environment(),
            stderr=log,
        )
        try:
            await asyncio.sleep(1.0)
            settings = msgspec.structs.replace(SETTINGS, broker=url)
            async with Bus(url, "look", "edge-0", passive=True) as bus:
                hearing = asyncio.create_task(hear(bus))
                async with AsyncExitStack() as stack:
                    if before is not None:
                        settings = msgspec.structs.replace(settings, launch=False)
                        services = run.service_programs(SETTINGS, prepare.read(folder).memory, url, url)
                        await stack.enter_async_context(running(services, folder / "services", lambda name: None))
                        await until(before, 60)
                    await run.execute(settings, folder, Watching(step))
                await asyncio.sleep(1.5)
                hearing.cancel()
            ended = bridge.returncode
        finally:
            for process in (bridge, broker):
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                await process.wait()
            await asyncio.gather(*tasks)
    return results.read(folder), ended, (folder / "bridge.log").read_text()


@pytest.fixture
async def tb() -> AsyncIterator[Standin]:
    standin = Standin()
    standin.add("gateway", "TOKEN", gateway=True)
    yield standin
    await standin.stop()


async def test_what_thingsboard_is_told_is_what_the_run_reports(
    prepared: Path, undisturbed: results.Result, tb: Standin, tmp_path: Path
) -> None:
    await tb.start()
    heard: list[int] = []
    found, ended, log = await beside(prepared, tmp_path / "run", tb, heard=heard)
    assert found == undisturbed
    assert ended is None, log
    device = tb.devices["edge-0"]
    rows = ledger.read(tmp_path / "run" / results.PROGRESS)
    assert device.told("loss") == [float(f"{row.loss:.9g}") for row in rows]
    assert device.told("grad_norm") == [float(f"{row.grad_norm:.9g}") for row in rows]
    # Rows that a checkpoint did not wait with lack the bytes of their model; a watcher of the bus heard them all.
    link = sum(row.uplink_inputs + row.uplink_layers + row.uplink_repairs + row.downlink for row in rows)
    assert 0 < link <= sum(device.told("compress_bytes")) == sum(heard)
    run.finish(SETTINGS, tmp_path / "run")
    accuracy = json.loads((tmp_path / "run/report.json").read_text())["accuracy"]
    for name, key in (("faulty_before", "accuracy_before"), ("int8", "accuracy_before_no_faults")):
        assert device.told(key) == [pytest.approx(accuracy[name]["mean"], rel=1e-8)]
    # Told by the evaluation's last seed, and by the run's end.
    assert device.told("accuracy_after") == [pytest.approx(accuracy["faulty_after"]["mean"], rel=1e-8)] * 2
    assert device.client["effective_ber_input"] == 1e-3
    assert device.client["agent_online"] is False
    assert not tb.said("BAD")
    assert not tb.said("CLOSED")[1:]


async def test_thingsboard_away_for_the_whole_run(
    prepared: Path, undisturbed: results.Result, tb: Standin, tmp_path: Path
) -> None:
    tb.port = free_port()
    found, ended, log = await beside(prepared, tmp_path / "run", tb)
    assert found == undisturbed
    assert ended is None
    assert "out of reach" in log


async def test_thingsboard_that_goes_and_comes_back_and_is_told_everything(
    prepared: Path, undisturbed: results.Result, tb: Standin, tmp_path: Path
) -> None:
    await tb.start()

    async def disturb(step: int) -> None:
        if step in (3, 7):
            await tb.stop()
        if step in (5, 9):
            await tb.start()

    found, ended, log = await beside(prepared, tmp_path / "run", tb, disturb)
    assert found == undisturbed
    assert ended is None, log
    rows = ledger.read(tmp_path / "run" / results.PROGRESS)
    assert set(tb.devices["edge-0"].told("step")) >= set(range(1, len(rows) + 1))


async def test_a_token_that_is_refused_ends_the_bridge_alone(
    prepared: Path, undisturbed: results.Result, tb: Standin, tmp_path: Path
) -> None:
    await tb.start()
    found, ended, log = await beside(prepared, tmp_path / "run", tb, token="WRONG")
    assert found == undisturbed
    assert ended == 1
    assert "refuses the credentials" in log.splitlines()[-1]


async def test_hostile_commands_of_thingsboard_change_nothing(
    prepared: Path, undisturbed: results.Result, tb: Standin, tmp_path: Path
) -> None:
    await tb.start()
    answers: list[object] = []

    async def disturb(step: int) -> None:
        session = tb.devices["edge-0"].session
        if session is None:  # the bridge has just ended one
            return
        for topic in ("v1/gateway/rpc", "v1/gateway/attributes", "v1/devices/me/attributes", "v2/fw/response/1/chunk/0"):
            for payload in (os.urandom(500), b"{" * 30_000, b"[]", b"null"):
                session.publish(topic, payload)
        announced = tb.assign("gateway", "evil", "1", os.urandom(100_000))
        await tb.set_shared("gateway", **announced)
        if step <= 3:  # it settles before the session is ended below, and while the run goes on
            await tb.set_shared("edge-0", ber=0.5, codec="direct", protected=[0], seed=step)
        for method, params in (
            ("setAIoTMode", {"mode": "inference", "rates": {"weight": 1.0}}),
            ("deployModel", {"ota": True}),
            ("getData", {"iteration": step, "split": "train", "samples": [0]}),
        ):
            with suppress(TimeoutError, ConnectionError):  # the bridge may have ended its session
                answers.append(await tb.rpc("edge-0", method, params))
        if step == 6:
            session.publish("v1/gateway/rpc", b"x" * (1 << 20))

    found, ended, log = await beside(prepared, tmp_path / "run", tb, disturb)
    assert found == undisturbed
    assert ended is None, log
    assert answers
    assert not any(isinstance(answer, dict) and answer.get("ok") for answer in answers), answers
    assert re.search("a run has edge-0.*not configured", log)
    assert re.search("SetAIoTMode.*a run has edge-0.*not carried out", log)
    assert "is dropped" in log


async def test_a_run_begins_and_ends_under_commands_without_a_pause(
    prepared: Path, undisturbed: results.Result, tb: Standin, tmp_path: Path
) -> None:
    """One of them holds the device at nearly any time before the run, and gives way to it."""
    await tb.start()
    carried_out = 0

    async def hammer() -> None:
        nonlocal carried_out
        while True:
            with suppress(KeyError, ConnectionError, TimeoutError):
                answer = await tb.rpc("edge-0", "setAIoTMode", {"mode": "inference", "rates": {"weight": 0.5}}, timeout=9)
                carried_out += bool(answer.get("ok"))
            await asyncio.sleep(0.001)

    hammering = asyncio.create_task(hammer())
    found, ended, log = await beside(prepared, tmp_path / "run", tb, before=lambda: carried_out > 20)
    hammering.cancel()
    assert found == undisturbed
    assert ended is None, log
    assert carried_out > 20
