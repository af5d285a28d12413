"""Peak memory of the device's services over some iterations of a real run: ``python -m experiments.device_memory --help``.

Starts ``r2f retrain`` and reads ``/proc/PID/smaps_rollup`` of agent, voter and the device's codec while it runs. What
counts is what a device could not take back: anonymous and shared memory (Pss: shared pages once). Mapped files, the
libraries' code, are beside it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from experiments.common import command
from experiments.common.networks import FIVE, float_weights, photos

SERVICES: Final = {"agent": "services.edge_agent", "voter": "services.voter", "codec-device": "services.codec --side device"}
EVERY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, MiB."""

    anonymous: float
    shared: float
    files: float

    @property
    def held(self) -> float:
        """What cannot be dropped and read again."""
        return self.anonymous + self.shared


def memory(pid: int) -> Memory | None:
    """Of a process now; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in text.splitlines()[1:]}
    return Memory(found["Pss_Anon"], found["Pss_Shmem"], found["Pss_File"])


def services(parent: int) -> dict[str, int]:
    """Process ids of the device's services that ``parent`` started."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            of = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if of == parent:
            found.update({name: int(process.name) for name, module in SERVICES.items() if f"-m {module} " in line})
    return found


def watch(command: list[str]) -> tuple[dict[str, Memory], dict[str, float]]:
    """Run ``command`` to its end: memory of the services when it was most in all, and each one's own peak, MiB.

    Raises CalledProcessError where it fails.
    """
    run = subprocess.Popen(command)
    most: dict[str, Memory] = {}
    peaks: dict[str, float] = {}
    try:
        while run.poll() is None:
            read = {name: memory(pid) for name, pid in services(run.pid).items()}
            now = {name: found for name, found in read.items() if found is not None}
            for name, found in now.items():
                peaks[name] = max(peaks.get(name, 0.0), found.held)
            if sum(m.held for m in now.values()) > sum(m.held for m in most.values()):
                most = now
            time.sleep(EVERY_S)
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait()
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command)
    return most, peaks


def table(most: Mapping[str, Memory], peaks: Mapping[str, float]) -> Table:
    """Of ``watch``, in whole MiB."""
    grid = Table("service", "anonymous", "shared", "held", "own peak", "files", title="MiB, when all three held most")
    for name, found in most.items():
        numbers = (found.anonymous, found.shared, found.held, peaks[name], found.files)
        grid.add_row(name, *(f"{number:.0f}" for number in numbers))
    held = sum(found.held for found in most.values())
    grid.add_row("device", "", "", f"{held:.0f}", "", f"{sum(found.files for found in most.values()):.0f}")
    return grid


def main() -> None:
    """Runs, and prints the table. Options that it does not know go to ``r2f retrain``."""
    parser = command.parser(f"{__doc__}\nFurther options go to r2f retrain as they are.")
    command.add_shared(parser)
    parser.add_argument("--network", default="resnet50", choices=[source.zoo for source in FIVE])
    command.add_cache(parser)
    parser.add_argument("--iterations", type=command.positive, default=3)
    given, further = parser.parse_known_args()
    source = next(source for source in FIVE if source.zoo == given.network)
    weights = float_weights(source, given.shared, photos(given.shared), given.cache)
    order = [sys.executable, "-m", "r2f.cli", "retrain", "--network", source.zoo, "--weights", str(weights)]
    order += ["--data", str(given.shared / "data" / "imagenet224.npz"), "--iterations", str(given.iterations)]
    try:
        most, peaks = watch([*order, "--eval-seeds", "1", "--eval-samples", "32", *further])
    except subprocess.CalledProcessError as error:
        # What was wrong, the run itself has said.
        raise command.InputError(f"r2f retrain ended with exit code {error.returncode}") from error
    Console().print(table(most, peaks))


if __name__ == "__main__":
    command.run(main)
