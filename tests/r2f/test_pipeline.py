"""The pipeline on small programs of its own: restarts, last words, logs, what a current folder may hold, nobody outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from r2f import folders, pipeline, prepare, run
from r2f.display import Display
from r2f.memory import Shares
from r2f.pipeline import Pipeline, PipelineError, Program
from r2f.settings import Settings
from services.trainer.core.evaluation import Evaluation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel to end children with their parent")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program that does as its argument says; children find it as they find a user's own."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "obedient.py").write_text("import sys\nexec(sys.argv[1])\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    return "obedient"


SLEEP = "import time; time.sleep(600)"


async def until(name: str, running: Pipeline, known: int = 0) -> int:
    """Process id of the program, once it is another than the known one."""
    async with asyncio.timeout(60):
        while running.pids.get(name, known) == known:  # noqa: ASYNC110  (the process table has no event)
            await asyncio.sleep(0.01)
    return running.pids[name]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_program_that_was_killed_is_started_again(module: str, tmp_path: Path, number: signal.Signals) -> None:
    again: list[str] = []
    async with pipeline.running([Program("a", module, (SLEEP,))], tmp_path / "logs", again.append) as running:
        first = await until("a", running)
        os.kill(first, number)
        assert await until("a", running, first) != first
    assert again == ["a"]
    assert running.pids == {}


async def test_a_needed_program_that_ends_well_is_started_again(module: str, tmp_path: Path) -> None:
    """As one that was sent SIGTERM and said goodbye in order."""
    again = asyncio.Queue[str]()
    async with pipeline.running([Program("a", module, ("pass",))], tmp_path / "logs", again.put_nowait):
        async with asyncio.timeout(60):
            assert [await again.get(), await again.get()] == ["a", "a"]


async def test_a_program_that_is_killed_again_and_again_ends_the_run(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "RESTARTS", 1)
    suicide = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(ExceptionGroup) as caught:
        async with pipeline.running([Program("a", module, (suicide,))], tmp_path / "logs", lambda _: None):
            await asyncio.sleep(600)
    assert "a was ended 2 times" in str(caught.value.exceptions[0])


async def test_a_program_that_ran_long_is_forgiven(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "RESTARTS", 1)
    monkeypatch.setattr(pipeline, "FORGIVEN_S", 0.001)
    again: list[str] = []
    async with pipeline.running([Program("a", module, (SLEEP,))], tmp_path / "logs", again.append) as running:
        pid = 0
        for _ in range(3):
            pid = await until("a", running, pid)
            os.kill(pid, signal.SIGKILL)
        await until("a", running, pid)
    assert again == ["a"] * 3


async def test_a_program_that_is_killed_while_the_run_gets_on_is_forgiven(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "RESTARTS", 1)
    again: list[str] = []
    async with pipeline.running([Program("a", module, (SLEEP,))], tmp_path / "logs", again.append) as running:
        pid = 0
        for count in range(1, 4):
            pid = await until("a", running, pid)
            os.kill(pid, signal.SIGKILL)
            while len(again) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            running.got_on()
        await until("a", running, pid)
    assert again == ["a"] * 3


async def test_a_program_that_runs_for_a_while_and_is_killed_and_gets_nowhere_ends_the_run(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "FORGIVEN_S", 0.001)
    monkeypatch.setattr(pipeline, "FRUITLESS", 2)
    suicide = "import os, time; time.sleep(0.1); os.kill(os.getpid(), 9)"
    with pytest.raises(ExceptionGroup) as caught:
        async with pipeline.running([Program("a", module, (suicide,))], tmp_path / "logs", lambda _: None):
            await asyncio.sleep(600)
    assert "a was ended 3 times, and the run did not get on" in str(caught.value.exceptions[0])


async def test_who_takes_a_while_to_end_is_waited_for_where_another_fails(module: str, tmp_path: Path) -> None:
    slow = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit()))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(600)"
    )
    failing = (
        "import pathlib, sys, time\n"
        f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)\n"
        "sys.exit('no more')"
    )
    programs = [Program("slow", module, (slow,)), Program("failing", module, (failing,))]
    pids: list[int] = []

    async def run() -> None:
        async with pipeline.running(programs, tmp_path / "logs", print) as running:
            pids.append(await until("slow", running))
            while not (tmp_path / "ready").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            (tmp_path / "go").touch()
            await asyncio.sleep(60)

    with pytest.raises(ExceptionGroup) as failed:
        await run()
    assert failed.group_contains(PipelineError, match="no more")
    assert not Path(f"/proc/{pids[0]}").exists()


async def test_the_last_word_is_of_the_last_start(module: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.log").write_text("what another run said\n")
    running = Pipeline(logs, lambda _: None)
    with pytest.raises(PipelineError, match="no such file: x"):
        await running.watch(Program("a", module, ("sys.exit('reason\\nno such file: x')",)))
    with pytest.raises(PipelineError, match=r"a ended with 4; see .*a\.log"):
        await running.watch(Program("a", module, ("sys.exit(4)",)))


async def test_empty_logs_go_and_others_stay(module: str, tmp_path: Path) -> None:
    programs = [Program("mute", module, (SLEEP,)), Program("loud", module, ("print(1, flush=True);" + SLEEP,))]
    logs = tmp_path / "logs"
    async with pipeline.running(programs, logs, lambda _: None) as running:
        await running.watch(Program("once", module, ("pass",)))
        async with asyncio.timeout(60):
            while not (logs / "loud.log").stat().st_size:  # noqa: ASYNC110  (nor has a file)
                await asyncio.sleep(0.01)
    assert [path.name for path in logs.iterdir()] == ["loud.log"]


async def test_what_lies_in_the_current_folder_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("services", "broker", "accelsim", "random"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not that one')\n")
    monkeypatch.chdir(tmp_path)
    running = Pipeline(tmp_path, lambda _: None)
    with pytest.raises(PipelineError, match="nowhere"):
        await running.watch(Program("voter", "services.voter", ("--broker", "nowhere://")))
    assert "not that one" not in (tmp_path / "voter.log").read_text()


async def test_passwords_are_not_among_the_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where every user of the host would see them."""
    started: list[Program] = []

    async def start(program: Program, _: object) -> asyncio.subprocess.Process:
        started.append(program)
        return await asyncio.create_subprocess_exec(*(sys.executable, "-c", SLEEP if program.name != "trainer" else ""))

    monkeypatch.setattr(pipeline, "_start", start)
    monkeypatch.setattr(run, "LISTEN_S", 0.1)  # nobody is there to be heard
    broker = "mqtt://server:secret@127.0.0.1:1"
    settings = Settings(broker=broker)
    nothing = Evaluation(samples=1, top1=[0.0])
    memory = Shares(agent=1, voter=1, codec=1, keep=1)
    prepared = prepare.Prepared(float_accuracy=nothing, classes=10, mean=(0.0,), std=(1.0,), memory=memory)
    (tmp_path / prepare.PREPARED).write_bytes(msgspec.json.encode(prepared))
    with Display(Console(quiet=True)) as display:
        await run.execute(settings, tmp_path, display)
    assert {program.name for program in started} == {"agent", "voter", "codec-device", "codec-server", "trainer"}
    assert all(program.environment["R2F_BROKER"] == broker for program in started)
    assert not any("secret" in argument for program in started for argument in program.arguments)
    assert (tmp_path / folders.BROKER).read_text() == "mqtt://server@127.0.0.1:1\n"


def test_nobody_outlives_a_run_that_is_killed(module: str, tmp_path: Path) -> None:
    program = f"""
import asyncio, pathlib
from r2f import pipeline
async def main():
    programs = [pipeline.Program("a", "{module}", ("import signal, time; signal.signal(15, 1); time.sleep(600)",))]
    async with pipeline.running(programs, pathlib.Path("{tmp_path}"), print) as running:
        while "a" not in running.pids:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        print(running.pids["a"], flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    from broker.child import environment

    async def check() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=environment()
        )
        assert process.stdout is not None
        child = int(await process.stdout.readline())
        process.kill()
        await process.wait()
        deadline = time.monotonic() + 60
        while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline, "it is still there"
            await asyncio.sleep(0.02)

    asyncio.run(check())
