"""Kill any one process in the middle of a run: the run finishes, and with the same model as an undisturbed one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import msgpack
import msgspec
import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt import publish
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console

from accelsim.faults import Rates
from broker.launch import find_mosquitto
from r2f import run
from r2f.display import Display
from r2f.pipeline import Pipeline
from r2f.settings import Settings
from services.bus import encoding, make_keys, topics
from services.bus.messages import Ack, Deploy, EncodedLayer, EncodedLayers, Outputs, Progress, Repair, SetMode, Tensor
from services.trainer.core import job as jobs
from services.trainer.core import ledger
from services.trainer.core import result as results
from services.trainer.core.task import Recipe, Sgd
from tests.r2f import served

pytestmark = pytest.mark.timeout(240)

SETTINGS = Settings(
    network="digits_cnn",
    rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
    iterations=14,
    sgd=Sgd(rate=0.02),
    recipe=Recipe(corrections=2, selection=64, accumulate=2, shift=1),
    evaluation_seeds=2,
    evaluation_samples=64,
    checkpoint_every=4,
    embedded=True,
)


class Killer(Display):
    """A live display that kills processes, each once, when the training has come to its step."""

    def __init__(self, victims: dict[int, str], session: str = "") -> None:
        super().__init__(Console(quiet=True))
        self.session = session
        self.victims = dict(victims)
        self.pipeline: Pipeline | None = None
        self.restarts: list[str] = []

    def progress(self, message: Progress) -> None:
        if message.phase == "train" and self.pipeline:
            for step in [step for step in self.victims if step <= message.step]:
                os.kill(self.pid(self.victims.pop(step)), signal.SIGKILL)

    def pid(self, victim: str) -> int:
        """Of a program, or of ``broker itself``, which ``python -m broker`` runs."""
        assert self.pipeline is not None
        pid = self.pipeline.pids[victim.removesuffix(" itself")]
        return pid if " " not in victim else int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def restarted(self, name: str) -> None:
        self.restarts.append(name)

    def started(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline


@pytest.fixture(scope="module")
def prepared(prepare: Callable[[Settings, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "prepared"
    prepare(SETTINGS, folder)
    return folder


def execute(prepared: Path, folder: Path, killer: Killer, settings: Settings = SETTINGS) -> results.Result:
    shutil.copytree(prepared, folder)
    asyncio.run(run.execute(settings, folder, killer))
    return results.read(folder)


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> results.Result:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(prepared, folder)
    return served.retrained(folder)


@pytest.mark.parametrize("victims", [("agent", "codec-server", "trainer"), ("voter", "codec-device", "broker")])
def test_killed_processes_change_nothing(
    victims: tuple[str, str, str], prepared: Path, undisturbed: results.Result, tmp_path: Path
) -> None:
    killer = Killer(dict(zip((3, 7, 11), victims, strict=True)))
    result = execute(prepared, tmp_path / "run", killer)
    assert killer.restarts == list(victims)
    assert result == undisturbed
    rows = ledger.read(tmp_path / "run" / results.PROGRESS)
    assert [row.iteration for row in rows] == list(range(SETTINGS.iterations))


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed (apt-get install mosquitto)")
def test_mosquitto_killed(prepared: Path, undisturbed: results.Result, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, embedded=False)
    killer = Killer({6: "broker"})
    assert execute(prepared, tmp_path / "run", killer, settings) == undisturbed
    assert killer.restarts == ["broker"]


def test_the_broker_itself_killed_and_not_its_launcher(prepared: Path, undisturbed: results.Result, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, embedded=find_mosquitto() is None)
    killer = Killer({6: "broker itself"})
    assert execute(prepared, tmp_path / "run", killer, settings) == undisturbed
    assert killer.restarts == []
    assert "was killed by SIGKILL; starting it again" in (tmp_path / "run/logs/broker.log").read_text()


class Hostile(Killer):
    """Sends rubbish, lies and half messages on every topic of the device, a few times in the training."""

    def progress(self, message: Progress) -> None:
        if message.phase == "train" and message.step in (3, 5, 7) and self.pipeline:
            port = int(self.pipeline.argument("broker", "--port"))
            session = self.session
            lies = {
                "up/layers": EncodedLayers(
                    session=session, iteration=message.step, attempt=0, sent_at=0.0, segment=0, batch=2**31,
                    layers=(EncodedLayer(0, 1, b"\x01\xff\xff\xff\xff"),),
                ),
                "up/ack": Ack(session=session, of="model", seq=10**9, ok=True, version=10**9),
                "edge/model": Deploy(
                    session=session, iteration=0, version=3, network=Tensor(dtype="uint8", shape=(4,), data=b"\0\0\0\0")
                ),
                "down/repair": Repair(session=session, iteration=message.step, attempt=0, layer=2**40, digests=b"x"),
            }  # fmt: skip
            rubbish = [
                (f"r2f/v1/edge-0/{name}", payload, 1, False)
                for name in topics.TABLE
                for payload in (os.urandom(64), b"", b"\xdf\xff\xff\xff\xff", encoding.encode(lies["up/ack"])[:-3])
            ]
            told = [(f"r2f/v1/edge-0/{name}", encoding.encode(lie), 1, False) for name, lie in lies.items()]
            publish.multiple(rubbish + told, hostname="127.0.0.1", port=port)


def test_hostile_messages_change_nothing(prepared: Path, undisturbed: results.Result, tmp_path: Path) -> None:
    hostile = Hostile({}, jobs.read(prepared).session)
    assert execute(prepared, tmp_path / "run", hostile) == undisturbed
    assert hostile.restarts == []
    assert "message dropped" in (tmp_path / "run/logs/codec-server.log").read_text()


class Forger(Killer):
    """Who runs the broker: forges a model, a mode and results that anybody would take, and repeats all that it recorded."""

    def __init__(self, session: str, network: bytes) -> None:
        super().__init__({}, session)
        self.network = network
        self.recorded: list[tuple[str, bytes]] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self.client.on_message = lambda client, userdata, packet: self.recorded.append((packet.topic, packet.payload))

    def listen(self, pipeline: Pipeline) -> None:
        self.client.connect("127.0.0.1", int(pipeline.argument("broker", "--port")))
        self.client.subscribe([(f"r2f/v1/edge-0/{plane}/#", 1) for plane in ("down", "up", "edge", "server")])
        self.client.loop_start()

    def progress(self, message: Progress) -> None:
        if self.pipeline and not self.client.is_connected():
            self.listen(self.pipeline)
        if (message.phase, message.step) not in (("train", 4), ("train", 8), ("after", 1)):
            return
        wrong = encoding.inline(np.zeros((64, 1, 1, 10), np.int8))
        lies = {
            "edge/model": Deploy(
                session=self.session, iteration=0, version=99, network=encoding.inline(np.frombuffer(self.network, np.uint8))
            ),
            "down/mode": SetMode(session=self.session, seq=99, mode="training", rates=Rates(weight=0.5)),
            "up/ack": Ack(session=self.session, of="forward", seq=message.step, ok=False, error="forged"),
            "up/outputs": Outputs(session=self.session, iteration=1 << 30, attempt=0, outputs=wrong, labels=None),
        }
        for name, lie in lies.items():
            self.client.publish(f"r2f/v1/edge-0/{name}", encoding.encode(lie), 1)
        for topic, payload in list(self.recorded):
            fields = msgpack.unpackb(payload)
            if fields["type"] == "sealed":
                bare = {key: value for key, value in fields.items() if key not in ("origin", "n")}
                self.client.publish(topic, msgpack.packb(bare), 1)


def test_who_runs_the_broker_can_forge_and_replay_nothing_where_messages_are_signed(
    prepared: Path, undisturbed: results.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_keys.make(tmp_path / "keys", ["edge-0"])
    monkeypatch.setenv("R2F_SIGNING_KEY_FILE", str(tmp_path / "keys"))
    forger = Forger(jobs.read(prepared).session, (prepared / jobs.NETWORK).read_bytes())
    try:
        settings = msgspec.structs.replace(SETTINGS, embedded=find_mosquitto() is None)
        assert execute(prepared, tmp_path / "run", forger, settings) == undisturbed
    finally:
        forger.client.loop_stop()
    assert forger.restarts == []
    lines = [json.loads(line) for line in (tmp_path / "run/logs/audit.jsonl").read_text().splitlines()]
    refused = {(line["service"], why) for line in lines if line["event"] == "refused"
               for why in ("not signed", "came before") if why in line["reason"]}  # fmt: skip
    assert {(service, "not signed") for service in ("agent", "trainer")} <= refused
    assert {(service, "came before") for service in ("agent", "trainer", "codec-device", "codec-server")} <= refused
    assert {line["seq"] for line in lines if line["event"] == "mode"}.isdisjoint({99})


def test_resume_after_everything_died(prepared: Path, undisturbed: results.Result, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    class Stop(Killer):
        def progress(self, message: Progress) -> None:
            if message.phase == "train" and message.step >= 6:
                self.task.cancel()

    async def interrupted() -> None:
        stop = Stop({})
        stop.task = asyncio.create_task(run.execute(SETTINGS, folder, stop))
        with pytest.raises(asyncio.CancelledError):
            await stop.task

    shutil.copytree(prepared, folder)
    asyncio.run(interrupted())
    assert not results.read(folder).faulty_after
    asyncio.run(run.execute(SETTINGS, folder, Killer({})))
    assert results.read(folder) == undisturbed
