"""Real runs, while their processes are killed and frozen at random: does each end, and with the model of an undisturbed one?

``make soak MINUTES=60``. A run is ``r2f retrain`` of a small network on digits over Mosquitto, on one broker or on two with a
shaped link between them. What is done to it is drawn from ``--seed``, printed, and counted; what it meets there depends on the
machine. A run that ends by itself before it is done, stands still for ``STILL_S`` or ends with another model is a failure, and
its folder stays.

Writes ``soak.md``, ``disturbances.csv`` and ``runs.csv`` into ``--out``, anew after each run. Exit code 1 where a run failed.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from rich.console import Console
from safetensors.torch import save_file

from accelsim import datasets
from accelsim.faults import Rates
from accelsim.int8 import storage
from broker.child import dying_with_us, environment, python
from broker.launch import find_mosquitto
from experiments.common import command
from experiments.common.command import InputError
from experiments.common.disturbing import EVERYTHING, Deed, Disturbance, Scene, in_turn, set_clock
from r2f import float_training, prepare
from r2f.display import Display
from r2f.settings import DEMO_NETWORK, Settings
from services.trainer.core import ledger, result
from services.trainer.core.task import Recipe, Sgd

NO_ROOM: Final = "No space left on device"
REST_S: Final = 40.0
"""A run that has not got on for as long is left alone until it does: on a busy machine, getting up again takes a while."""
STILL_S: Final = 400.0
"""A run that was left alone for as long and has not got on has wedged: a trainer gives up a silent device sooner."""
TICK_S: Final = 0.05
DISK_MB: Final = 24
"""Of the file system that a run's folder is on where its disk is to be full at times."""
OFTEN: Final = 6
"""Disturbances in the time that an undisturbed run takes, where nobody says how often: more keep it from getting on at all."""
LINKS: Final = (None, None, "hspa", "802.15.4g")
"""Of a run's two brokers; None is one broker. Each as likely as another."""
CLOCK: Final = Path(__file__).parent / "common" / "clock.c"


class Run(NamedTuple):
    """What became of one run."""

    link: str
    seconds: float
    done: list[Disturbance]
    resumed: int
    """How often ``r2f`` was killed and started again on the same folder."""
    no_room: int
    """How often it ended by itself with a line that said that the disk was full, as it began or reported, and was started again
    when there was room."""
    stall_s: float
    """Longest time in which it did not get on: no iteration and no evaluation that was not there before."""
    failure: str
    """Empty where it ended with the undisturbed run's model."""


def settings_of(link: str | None, iterations: int, weights: str | None) -> Settings:
    """The run, small: corrections, updates of two batches each, evaluations. It ends with what it learnt, better or not:
    were the network from before kept, every run would end with that."""
    return Settings(
        weights=weights,
        rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
        iterations=iterations,
        sgd=Sgd(rate=0.02),
        recipe=Recipe(corrections=2, selection=0, accumulate=2, shift=1),
        evaluation_seeds=2,
        evaluation_samples=64,
        checkpoint_every=3,
        link=link,
        live=link is not None,
    )


def undisturbed(folder: Path, say: Callable[[str], None]) -> tuple[result.Result, float]:
    """What a prepared run ends with when it is left alone, and the seconds that it takes; its folder is as before."""
    alone = folder.with_name(f"{folder.name}-undisturbed")
    shutil.copytree(folder, alone)
    began = time.monotonic()
    finished = subprocess.run(resume(alone), env=environment(), capture_output=True, text=True)
    if finished.returncode:
        raise InputError(f"{alone}: the run fails even when it is left alone: {finished.stderr.strip()[-500:]}")
    found = result.read(alone)
    if found.model_sha256 == storage.digest(prepare.network_of(alone)):
        raise InputError(f"{alone}: the run learnt nothing, so its model tells nothing")
    took = time.monotonic() - began
    say(f"{folder.name}: undisturbed {took:.0f} s, model {found.model_sha256[:12]}")
    return found, took


def resume(folder: Path) -> list[str]:
    """The command that does a prepared run, or goes on with it."""
    return python("r2f", "retrain", "--resume", str(folder))


class Pace(NamedTuple):
    """What is done, and how often."""

    deeds: Sequence[tuple[Deed, int]]
    every_s: float
    """Seconds between two disturbances, in the mean."""
    ends_at: float
    """Of ``time.monotonic``: nothing is done later."""
    most: int | None
    """Disturbances of the whole soak."""


def soaked(
    folder: Path, log: Path, link: str, expected: result.Result, scene: Scene, pace: Pace, say: Callable[[str], None]
) -> Run:
    """One run from its prepared folder to its end, disturbed. ``log`` is what ``r2f`` says, since it was last started."""
    done: list[Disturbance] = []
    lasting: list[tuple[float, Disturbance]] = []
    touched: list[float] = []
    """When the last thing that was done to it ended, or will."""
    env = environment() if scene.clock is None else environment() | _off(scene.clock)
    began = changed = time.monotonic()
    stall, resumed, no_room, failure, got = 0.0, 0, 0, "", _got(folder)
    process, life = _started(folder, log, env), 0
    following = began + scene.chance.expovariate(1 / pace.every_s)
    try:
        while True:
            now = time.monotonic()
            for due in [entry for entry in lasting if entry[0] <= now]:
                lasting.remove(due)
                due[1].end()
            if (found := _got(folder)) > got:
                got, changed = found, now
            stall = max(stall, now - changed)
            if (code := process.poll()) is not None:
                words = log.read_text(errors="replace")
                if code == 0:
                    ended = result.read(folder)
                    if ended.model_sha256 != expected.model_sha256:
                        failure = f"ended with model {ended.model_sha256[:12]}, not {expected.model_sha256[:12]}"
                    elif ended != expected:
                        failure = "ended with the model, but other accuracies"
                    break
                filled = scene.disk is not None and any(one.what == "disk full" for one in done[life:])
                if code > 0 and filled and NO_ROOM in words:
                    no_room += 1
                elif code > 0:
                    failure = f"ended early with {code}: {' '.join(words.split())[-300:]}"
                    break
                _release(lasting)  # who starts it again has seen to the disk
                resumed += code < 0
                life = len(done)
                process = _started(folder, log, env)
            if now - max([changed, *touched]) > STILL_S:
                failure = f"stood still for {STILL_S:.0f} s: {' '.join(log.read_text(errors='replace').split())[-300:]}"
                break
            if (
                now >= following
                and now - changed < REST_S
                and now < pace.ends_at
                and (pace.most is None or len(done) < pace.most)
            ):
                following = now + scene.chance.expovariate(1 / pace.every_s)
                deeds, weights = zip(*pace.deeds, strict=True)
                disturbance = scene.chance.choices(deeds, weights)[0](scene._replace(root=process.pid))
                if disturbance is not None:
                    done.append(disturbance)
                    lasting.append((now + disturbance.lasts_s, disturbance))
                    touched = [max([now + disturbance.lasts_s, *touched])]
                    lasts = f" for {disturbance.lasts_s:.1f} s" if disturbance.lasts_s else ""
                    say(f"{now - began:7.1f} s  {disturbance.what}: {disturbance.whom}{lasts}")
            time.sleep(TICK_S)
    finally:
        _release(lasting)
        if process.poll() is None:
            process.kill()
            process.wait()
    return Run(link, time.monotonic() - began, done, resumed, no_room, stall, failure)


def _release(lasting: list[tuple[float, Disturbance]]) -> None:
    """End all that lasts."""
    while lasting:
        lasting.pop()[1].end()


def _started(folder: Path, log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:  # of the last start alone: what it says is why it ended
        # A soak that is killed leaves no run behind.
        return subprocess.Popen(
            dying_with_us(resume(folder), signal.SIGTERM), env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def _got(folder: Path) -> tuple[bool, int, int]:
    """How far a run has got: reported, evaluations, iterations. It only grows, but for iterations that are done again."""
    iterations = len(ledger.read(folder / result.PROGRESS))
    found = result.read(folder)
    evaluations = (found.clean_before, found.faulty_before, found.clean_after, found.faulty_after)
    return (folder / "report.json").exists(), sum(one is not None for one in evaluations), iterations


def _off(clock: Path) -> dict[str, str]:
    """Environment in which processes see the wall clock off by what that file says; its library lies beside it."""
    return {"LD_PRELOAD": str(clock.with_suffix(".so")), "R2F_SOAK_CLOCK": str(clock)}


def clock_of(folder: Path, say: Callable[[str], None]) -> Path | None:
    """A clock's file, beside the library that has processes read it; None where there is no C compiler to make that."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        say("no clock is put forward or back: there is no C compiler (apt-get install gcc libc6-dev)")
        return None
    clock = (folder / "clock").absolute()
    built = [compiler, "-shared", "-fPIC", "-O2", "-o", str(clock.with_suffix(".so")), str(CLOCK)]
    made = subprocess.run(built, capture_output=True, text=True)
    if made.returncode:
        raise InputError(f"{CLOCK}: cannot be compiled: {made.stderr.strip()[-300:]}")
    return clock


@contextmanager
def small_disk(at: Path, say: Callable[[str], None]) -> Iterator[Path | None]:
    """A file system of ``DISK_MB`` for the block, None where this user may not mount one."""
    at.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "r2f-soak", str(at)]
    mounted = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if mounted is None or mounted.returncode:
        say("no disk is filled: a small file system cannot be mounted here (root is needed)")
        yield None
        return
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def table(runs: Sequence[Run], seed: int, minutes: float) -> str:
    """What was done and what became of it, in Markdown."""
    count = Counter((one.what, one.whom) for run in runs for one in run.done)
    what = Counter(one.what for run in runs for one in run.done)
    failed = [run for run in runs if run.failure]
    lines = [
        f"Seed {seed}, {minutes:.1f} minutes.", "",
        "| | |", "|---|---|",
        f"| runs | {len(runs)} |",
        f"| ended with the undisturbed run's sha256 | {len(runs) - len(failed)} |",
        f"| did not | {len(failed)} |",
        f"| disturbances | {sum(count.values())} |",
        f"| `r2f` itself started again on its folder | {sum(run.resumed for run in runs)} |",
        f"| `r2f` itself ended for want of room, said so, and was started again | {sum(run.no_room for run in runs)} |",
        f"| longest time in which a run did not get on | {max((run.stall_s for run in runs), default=0):.0f} s |",
        "", "| done | times | to whom |", "|---|---|---|",
    ]  # fmt: skip
    for deed, times in what.most_common():
        each = [(name, n) for (of, name), n in count.most_common() if of == deed]
        whom = f"{len(each)} pairs" if " and " in each[0][0] else ", ".join(f"{name} {n}" for name, n in each)
        lines.append(f"| {deed} | {times} | {whom} |")
    lines += ["", "| brokers and link | runs | the same sha256 |", "|---|---|---|"]
    for link in dict.fromkeys(run.link for run in runs):
        of = [run for run in runs if run.link == link]
        lines.append(f"| {link} | {len(of)} | {sum(not run.failure for run in of)} |")
    return "\n".join(lines) + "\n"


def write(out: Path, runs: Sequence[Run], seed: int, minutes: float) -> None:
    """The tables of a soak, so far."""
    (out / "soak.md").write_text(table(runs, seed, minutes), encoding="utf-8")
    with (out / "runs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["run", "link", "seconds", "disturbances", "resumed", "no room", "longest stall s", "failure"])
        for n, run in enumerate(runs, 1):
            rows.writerow(
                [n, run.link, f"{run.seconds:.1f}", len(run.done), run.resumed, run.no_room, f"{run.stall_s:.1f}", run.failure]
            )
    with (out / "disturbances.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["what", "whom", "times"])
        for (what, whom), times in Counter((one.what, one.whom) for run in runs for one in run.done).most_common():
            rows.writerow([what, whom, times])


def soak(
    out: Path, *, minutes: float, seed: int, every_s: float | None, iterations: int, kills: int | None,
    links: Sequence[str | None], weights: str | None, say: Callable[[str], None],
) -> list[Run]:  # fmt: skip
    """Run after run until the time is over, or so many kills are done; what became of each. Raises InputError."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; give --out a folder of its own")
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    chance = Random(seed)
    runs: list[Run] = []
    deeds = EVERYTHING if kills is None else ((in_turn(), 1),)
    prepared: dict[str | None, tuple[Path, result.Result, float]] = {}
    if weights is None:
        weights = str(out / "float.safetensors")
        save_file(float_training.from_nothing(DEMO_NETWORK, datasets.load(datasets.DIGITS), 0).state_dict(), weights)
    clock = clock_of(out, say) if kills is None else None
    with small_disk(out / "disk", say) as disk:
        while (time.monotonic() - began < 60 * minutes) if kills is None else sum(len(run.done) for run in runs) < kills:
            link = chance.choice(list(links))
            if link not in prepared:
                folder = out / f"prepared-{link or 'one-broker'}"
                with Display(Console(quiet=True)) as quiet:
                    prepare.prepare(settings_of(link, iterations, weights), folder, quiet)
                prepared[link] = folder, *undisturbed(folder, say)
            fresh, expected, took = prepared[link]
            folder = (disk or out) / f"run-{len(runs) + 1}"
            shutil.copytree(fresh, folder)
            # For every other run: what is preloaded is in all its processes, and is not the product.
            off = clock if clock is not None and chance.random() < 0.5 else None
            if off is not None:
                set_clock(off, 0)
            most = None if kills is None else kills - sum(len(run.done) for run in runs)
            pace = Pace(deeds, every_s or took / OFTEN, began + 60 * minutes, most)
            name = "one broker" if link is None else f"two brokers, {link}"
            say(f"run {len(runs) + 1}: {name}{'' if off is None else ', a clock of its own'}")
            run = soaked(
                folder, out / f"run-{len(runs) + 1}.log", name, expected, Scene(0, chance, disk, off, set()), pace, say
            )
            runs.append(run)
            say(f"run {len(runs)}: {run.seconds:.0f} s, {len(run.done)} disturbances, {run.failure or 'the same model'}")
            if run.failure:
                shutil.copytree(folder, out / f"failed-{len(runs)}")
            shutil.rmtree(folder)
            write(out, runs, seed, (time.monotonic() - began) / 60)
    return runs


def seconds(text: str) -> float:
    """A time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0")
    return value


def main() -> int:
    """See the module."""
    parser = command.parser(__doc__)
    parser.add_argument("--minutes", type=seconds, default=60.0, help="how long disturbed runs are begun [%(default)s]")
    parser.add_argument("--kills", type=command.positive, help="instead: so many kills, and nothing but kills")
    parser.add_argument("--every", type=seconds, metavar="SECONDS", help="between two, in the mean [a sixth of a run]")
    parser.add_argument("--iterations", type=command.positive, default=20, help="of each run [%(default)s]")
    parser.add_argument("--link", choices=["none", "lte", "hspa", "802.15.4g"], help="this alone, in place of all in turn")
    parser.add_argument("--seed", type=int, default=0, help="of what is done [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="a folder that is empty or not there [%(default)s]")
    options = parser.parse_args()
    if find_mosquitto() is None or sys.platform != "linux":
        raise InputError("a soak runs on Linux and needs Mosquitto (apt-get install mosquitto)")

    def say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)

    say(f"seed {options.seed}")
    runs = soak(
        options.out, minutes=options.minutes if options.kills is None else 1e6, seed=options.seed, every_s=options.every,
        iterations=options.iterations, kills=options.kills, weights=None, say=say,
        links=LINKS if options.link is None else (None if options.link == "none" else options.link,),
    )  # fmt: skip
    print("\n" + (options.out / "soak.md").read_text(encoding="utf-8"))
    return int(any(run.failure for run in runs))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command.run(main)
