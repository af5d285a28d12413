"""Programs in C in the place of our services (docs/integrating.md): the run's model is the one that ours give."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
from rich.console import Console

from accelsim.datasets import load
from accelsim.faults import Rates
from broker.launch import launch
from r2f import run, settings
from r2f.display import Display
from r2f.settings import Settings, SettingsError
from services.scheme import Scheme
from services.trainer.core import result as results
from services.trainer.core.task import PAPER, Sgd
from tests.r2f import served

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]
FAULTY = Settings(
    network="digits_cnn",
    rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
    scheme=Scheme(protected=(0,)),
    iterations=3,
    sgd=Sgd(rate=0.02),
    recipe=PAPER,
    labels="device",
    evaluation_seeds=1,
    evaluation_samples=64,
)


def built(name: str, folder: Path) -> Path:
    """An example's program. Skips, and says so, where it cannot be built."""
    if shutil.which("make") is None or shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler or make is here: the programs in C are not built")
    headers = ("mosquitto.h", "msgpack.h", "xxhash.h", "cjson/cJSON.h")
    lines = "".join(f"#include <{header}>\n" for header in headers)
    found = subprocess.run(["cc", "-E", "-xc", "-"], input=lines, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(
            "libmosquitto-dev, libmsgpack-dev, libxxhash-dev or libcjson-dev is not here: the programs in C are not built"
        )
    made = subprocess.run(["make", f"OUT={folder}"], cwd=ROOT / "examples" / name, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder / name


@contextmanager
def beside(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs for as long as the block, and ends with 0 when told to."""
    with log.open("wb") as said, subprocess.Popen(command, stderr=said, env=os.environ | (env or {})) as process:
        try:
            yield process
            assert process.poll() is None, f"it ended: {log.read_text()}"
        finally:
            process.terminate()
            code = process.wait(20)
        assert code == 0, log.read_text()


def ours(prepared: Path, folder: Path) -> results.Result:
    """What our own services come to."""
    shutil.copytree(prepared, folder)
    return served.retrained(folder)


def execute(asked: Settings, prepared: Path, folder: Path, external: Callable[[str], list[str]]) -> results.Result:
    """The run on a broker of its own, where ``external``, a command by the broker's address, stands in for one of ours."""
    shutil.copytree(prepared, folder)

    async def on_broker() -> None:
        async with launch() as running, asyncio.timeout(200):
            settings = msgspec.structs.replace(asked, broker=running.url(), launch=True)
            with beside(external(running.url()), folder / "external.log"):
                await run.execute(settings, folder, Display(Console(quiet=True)))

    asyncio.run(on_broker())
    return results.read(folder)


@pytest.fixture(scope="module", params=["median", "bitwise"])
def voting(request: pytest.FixtureRequest) -> Settings:
    return msgspec.structs.replace(FAULTY, scheme=msgspec.structs.replace(FAULTY.scheme, vote=request.param))


def test_a_voter_in_c_gives_the_model_that_ours_gives(
    voting: Settings, prepare: Callable[[Settings, Path], None], tmp_path: Path
) -> None:
    voter = built("c-voter", tmp_path)
    prepare(voting, tmp_path / "prepared")
    asked = msgspec.structs.replace(voting, external=("voter",))
    theirs = execute(asked, tmp_path / "prepared", tmp_path / "theirs", lambda url: [str(voter), url, "edge-0"])
    assert theirs == ours(tmp_path / "prepared", tmp_path / "ours")
    assert "dropped" not in (tmp_path / "theirs" / "external.log").read_text()
    assert not (tmp_path / "theirs" / "logs" / "voter.log").exists(), "ours did not run"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as the agent in C reads them: the files in an .npz."""
    folder, data = tmp_path_factory.mktemp("digits"), load("digits")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.save(folder / f"{name}.npy", getattr(data, name))
    return folder


CLEAN = msgspec.structs.replace(
    FAULTY,
    rates=Rates(input=0.0, weight=0.0, output=0.0),
    recipe=msgspec.structs.replace(PAPER, flip=True, shift=1),
    scheme=Scheme(protected=(0,), referee=False),
)
"""A device without faults: another program's outputs are then the same integers, and so is the model. With views."""


@pytest.fixture(scope="module")
def clean(prepare: Callable[[Settings, Path], None], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, results.Result]:
    """A run that is prepared, and what our own services come to with it."""
    folder = tmp_path_factory.mktemp("clean")
    prepare(CLEAN, folder / "prepared")
    return folder / "prepared", ours(folder / "prepared", folder / "ours")


@pytest.mark.parametrize("packet", [None, 4096], ids=["in packets of 127 KiB", "of 4 KiB"])
def test_an_agent_in_c_gives_the_model_that_ours_gives(
    packet: int | None,
    photographs: Path,
    clean: tuple[Path, results.Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, (prepared, wanted) = built("c-agent", tmp_path), clean
    if packet is not None:
        monkeypatch.setenv("R2F_PACKET_BYTES", str(packet))
    asked = msgspec.structs.replace(CLEAN, external=("agent",))
    theirs = execute(asked, prepared, tmp_path / "theirs", lambda url: [str(agent), url, "edge-0", str(photographs)])
    assert theirs == wanted
    assert "dropped" not in (tmp_path / "theirs" / "external.log").read_text()


@pytest.mark.parametrize("codec", ["chained", "direct"])
def test_an_agent_in_c_whose_chip_makes_errors_is_retrained(
    codec: Literal["chained", "direct"], photographs: Path, prepare: Callable[[Settings, Path], None], tmp_path: Path
) -> None:
    """Its errors are its own, and every one of them reaches the trainer: no layer is left with another digest."""
    agent = built("c-agent", tmp_path)
    asked = msgspec.structs.replace(FAULTY, scheme=Scheme(codec=codec), external=("agent",), iterations=5)
    prepare(asked, tmp_path / "prepared")
    command = lambda url: [str(agent), url, "edge-0", str(photographs)]  # noqa: E731
    once = execute(asked, tmp_path / "prepared", tmp_path / "once", command)
    assert once != ours(tmp_path / "prepared", tmp_path / "ours")
    if codec == "chained":  # of either codec its faults are drawn alike
        again = execute(asked, tmp_path / "prepared", tmp_path / "again", command)
        assert once == again, "the same run gives the same faults"


def test_what_is_external_needs_a_broker_that_it_can_find() -> None:
    with pytest.raises(SettingsError, match=r"--external voter: give --broker"):
        settings.parse({"external": "voter"})
    with pytest.raises(SettingsError, match=r"--external voter: without --launch none is started"):
        settings.parse({"external": "voter", "broker": "mqtt://127.0.0.1:1", "launch": False})
    with pytest.raises(SettingsError, match="--external ghost"):
        settings.parse({"external": "ghost", "broker": "mqtt://127.0.0.1:1"})
    asked = settings.parse({"external": "voter, agent", "broker": "mqtt://127.0.0.1:1"})
    assert (asked.external, asked.launch) == (("voter", "agent"), True)
    assert settings.parse(settings.flat(asked)) == asked
