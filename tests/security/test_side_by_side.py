"""Three devices, a broker each, bridged by certificates to a server's, retrain side by side, beside a hostile fourth."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console
from safetensors.torch import save_file

from accelsim import zoo
from accelsim.datasets import load
from accelsim.faults import Rates
from accelsim.int8 import storage
from broker import certificates
from broker.certificates import Identity
from broker.launch import find_mosquitto
from r2f import inprocess, pipeline, prepare, run
from r2f.display import Display
from r2f.pipeline import Program
from r2f.settings import DEMO_NETWORK, Settings
from services.trainer.core import job as jobs
from services.trainer.core import ledger
from services.trainer.core import result as results
from services.trainer.core.fleet import Fleet
from services.trainer.core.task import PAPER, Sgd
from tests.security import sites
from tests.security.hostile import Hostile

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: only it can bridge"),
]
DEVICES = {"a": "127.0.0.11", "b": "127.0.0.12", "c": "127.0.0.13"}
SETTINGS = Settings(
    network="digits_cnn",
    rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
    device="a,b,c",
    iterations=6,
    batch=16,
    sgd=Sgd(rate=0.02),
    recipe=PAPER,
    labels="device",
    evaluation_seeds=1,
    evaluation_samples=32,
    checkpoint_every=3,
    launch=False,
    codecs=1,
)


# It is cut off in the middle of connections, whose sockets are then left to the garbage collector.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_hostile_device_changes_nothing_for_three_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(zoo.build(DEMO_NETWORK, classes=10).state_dict(), weights)
    identities, folder = tmp_path / "identities", tmp_path / "runs" / "one"
    async with sites.running(identities, DEVICES) as site:
        certificates.issue(identities, Identity("evil", "device", "evil"))
        for process in site.processes.values():
            process.send_signal(1)  # the lists were written anew
        settings = replace(SETTINGS, broker=site.url(), weights=str(weights))
        with Display(Console(quiet=True)) as display:
            prepare.prepare(settings, folder, display, Fleet(sharing="own", devices=tuple(DEVICES)))
        # Without a bus, and so without anybody to disturb it.
        network, alone = storage.load(folder / jobs.NETWORK), {}
        for name in DEVICES:
            job = jobs.read(folder / name)
            jobs.write(folder / name, replace(job, patience_s=120.0))
            alone[name] = storage.digest(inprocess.retrain(network, load("digits"), job).network)
        assert len(set(alone.values())) == 3
        monkeypatch.setenv("R2F_IDENTITY", str(identities / "server"))
        programs = []
        for name in DEVICES:
            memory = tmp_path / f"memory-{name}"
            memory.mkdir()
            environment = {"R2F_IDENTITY": str(identities / name), "R2F_SHM_DIR": str(memory)}
            programs.append(Program(f"device-{name}", "tests.security.device", (site.url(name), name), environment))
        where = [(host, site.port) for host in site.hosts.values()]
        hostile = Hostile(identities / "evil", "evil", where, [*DEVICES, "server"])
        async with pipeline.running(programs, tmp_path / "logs", lambda _: None):
            raging = asyncio.create_task(hostile.rage())
            try:
                await run.execute(settings, folder, Display(Console(quiet=True)))
                assert not raging.done(), raging.exception()
            finally:
                hostile.over = True
                for _ in range(300):  # cancelling one that just got its answer only gives it the answer
                    raging.cancel()
                    if (await asyncio.wait([raging], timeout=0.1))[0]:
                        break
        print(dict(sorted(hostile.did.items())), file=sys.stderr)
        print({name: (link.up_bytes, link.down_bytes) for name, link in site.links.items()}, file=sys.stderr)
    assert {name: results.read(folder / name).model_sha256 for name in DEVICES} == alone
    assert {row.attempts for name in DEVICES for row in ledger.read(folder / name / results.PROGRESS)} == {1}
    assert hostile.heard == set()
    ways = {"lie", "will", "take_over", "announce_huge", "babble", "half_open", "flood", "hoard"}
    assert ways <= set(hostile.did)
