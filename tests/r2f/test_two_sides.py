"""The containers' arrangement as processes: brokers, bridge, certificates, memory of each side, a trainer that waits."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from accelsim.datasets import load
from accelsim.faults import Rates
from accelsim.int8 import storage
from broker import pair
from broker.launch import find_mosquitto, free_port
from r2f import inprocess, pipeline, run
from r2f.display import Display
from r2f.pipeline import Pipeline, Program
from r2f.settings import Settings
from services.bus.messages import Progress
from services.trainer import waiting
from services.trainer.core import job, result
from services.trainer.core.task import PAPER, Sgd

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed: only it can bridge"),
]

HOSTS = {"server": "127.0.0.2", "edge-0": "127.0.0.1"}
SETTINGS = Settings(
    network="digits_cnn",
    rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
    iterations=12,
    sgd=Sgd(rate=0.02),
    recipe=PAPER,
    labels="device",
    evaluation_seeds=2,
    evaluation_samples=64,
    checkpoint_every=4,
    launch=False,
    trainer=False,
)


class Killer(Display):
    """A live display that kills each broker once on the way."""

    def __init__(self, everything: Pipeline) -> None:
        super().__init__(Console(quiet=True))
        self.everything = everything
        self.victims = {4: "edge-0-broker", 8: "server-broker"}

    def progress(self, message: Progress) -> None:
        if message.phase == "train":
            for step in [step for step in self.victims if step <= message.step]:
                os.kill(self.everything.pids[self.victims.pop(step)], signal.SIGKILL)


def programs(folder: Path, urls: dict[str, str], port: int) -> list[Program]:
    """The two brokers and the services, each with the memory of its side."""
    mosquitto = find_mosquitto()
    assert mosquitto is not None
    found = []
    for name, path in pair.write(folder / "identities", HOSTS["server"], port, {"edge-0": HOSTS["edge-0"]}).items():
        host = HOSTS[name.removesuffix("-broker")]
        path.write_text(path.read_text().replace(f"listener {port} 0.0.0.0", f"listener {port} {host}"))
        found.append(Program(name, "broker.child", (str(os.getpid()), "SIGTERM", mosquitto, "-c", str(path))))
    for name, side, module, arguments in (
        ("agent", "edge-0", "services.edge_agent", ("--data", "digits")),
        ("voter", "edge-0", "services.voter", ()),
        ("codec-device", "edge-0", "services.codec", ("--side", "device")),
        ("codec-server", "server", "services.codec", ("--side", "server")),
    ):
        found.append(Program(name, module, (*arguments, "--broker", urls[side]), memory(folder, side)))
    return found


def memory(folder: Path, side: str) -> dict[str, str]:
    where = folder / f"{side}-memory"
    where.mkdir(exist_ok=True)
    return {"R2F_SHM_DIR": str(where), "R2F_IDENTITY": str(folder / "identities" / side)}


async def test_two_sides_with_both_brokers_killed_end_with_the_model_of_one_process(
    prepare: Callable[[Settings, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    urls = {side: f"mqtts://{host}:{port}" for side, host in HOSTS.items()}
    monkeypatch.setenv("R2F_IDENTITY", str(tmp_path / "identities" / "server"))
    settings = msgspec.structs.replace(SETTINGS, broker=urls["server"])
    folder = tmp_path / "runs" / "one"
    prepare(settings, folder)
    arguments = ("--next", str(folder.parent), "--broker", urls["server"])
    trainer = Program("trainer", "services.trainer", arguments, memory(tmp_path, "server"))
    async with pipeline.running(programs(tmp_path, urls, port), tmp_path / "logs", lambda _: None) as everything:
        killer = Killer(everything)
        training_ends = asyncio.create_task(everything.watch(trainer))
        await run.execute(settings, folder, killer)
        await training_ends
    assert not killer.victims
    assert waiting.outcome(folder) == ""
    peer = inprocess.retrain(storage.load(folder / job.NETWORK), load(settings.data.source), job.read(folder))
    assert result.read(folder).model_sha256 == storage.digest(peer.network)
