"""What is done to the processes of a run: killed, frozen, ended, their disk filled, their clock put forward and back.

Each is begun at once and may last: ``Disturbance.end`` ends it, whatever became of the process meanwhile. Processes are found
in /proc (Linux) below the one that started them and go by the names that a run's logs have; ``broker itself`` is what
``python -m broker`` runs.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

ITSELF: Final = " itself"
ROOT: Final = "r2f"
_MODULES: Final = {
    "services.edge_agent": "agent",
    "services.voter": "voter",
    "services.trainer": "trainer",
    "services.codec": "codec",
    "broker.link": "link",
    "broker": "broker",
}
HOLDS: Final = ((0.3, 30), (1.0, 30), (3.0, 25), (8.0, 12), (50.0, 3))
"""Seconds for which a process is frozen, and how often of a hundred times: the longest is longer than a keepalive."""
SLOWED_S: Final = (3.0, 30.0)
"""Seconds for which the link is slow, at least and at most."""
SLOWED: Final = (0.45, 0.05)
"""Seconds for which a slow link stands still and lets pass, in turn: a tenth of what it is else."""
FULL_S: Final = (0.5, 8.0)
"""Seconds for which the disk is full, at least and at most."""
STEPS: Final = (-86400 * 400, -3600, -5, 0, 5, 3600, 86400 * 400)
"""Seconds by which the wall clock is off, one after another."""


class Scene(NamedTuple):
    """A run and what can be done to it."""

    root: int
    """Process id of ``r2f``."""
    chance: Random
    disk: Path | None = None
    """Mount point of a file system of its own with the run's folder on it; None: its disk is never full."""
    clock: Path | None = None
    """File that says by how many seconds the wall clock is off (``clock.c``); None: the clock is left alone."""
    held: set[int] | None = None
    """Process ids that are frozen or slowed now, and are left at that: who thaws one would undo the other. None: unknown."""


class Disturbance(NamedTuple):
    """Something that was done. ``end`` is called ``lasts_s`` seconds later, and once."""

    what: str
    whom: str
    lasts_s: float = 0.0
    end: Callable[[], None] = lambda: None


Deed = Callable[[Scene], Disturbance | None]
"""Something to do; None where it cannot be done right now."""


def processes(root: int) -> dict[str, int]:
    """Process ids by name: the one given, ``r2f``, and those that it started; a process half started is left out."""
    found = {ROOT: root}
    for child in _children(root):
        name = _name(_arguments(child))
        if name is not None:
            found[name] = child
            if name.endswith("broker"):
                found.update((name + ITSELF, own) for own in _children(child) if "broker.child" not in _arguments(own))
    return found


def killed(scene: Scene) -> Disturbance | None:
    """SIGKILL to any process, ``r2f`` among them: who started it is to start it again."""
    return _struck(scene, "killed", signal.SIGKILL, _all(scene))


def in_turn() -> Deed:
    """SIGKILL to any process but ``r2f`` itself, those first that met it least often."""
    met: Counter[str] = Counter()

    def kill(scene: Scene) -> Disturbance | None:
        found = processes(scene.root)
        found.pop(ROOT)
        if not found:
            return None
        name = min(sorted(found), key=lambda name: (met[name], scene.chance.random()))
        met[name] += 1
        return Disturbance("killed", name) if _send(found[name], signal.SIGKILL) else None

    return kill


def ended(scene: Scene) -> Disturbance | None:
    """SIGTERM to any process but ``r2f``, at which they say goodbye."""
    found = processes(scene.root)
    found.pop(ROOT)
    return _struck(scene, "ended (SIGTERM)", signal.SIGTERM, found)


def two_killed(scene: Scene) -> Disturbance | None:
    """SIGKILL to two processes at once."""
    found = processes(scene.root)
    found.pop(ROOT)
    if len(found) < 2:
        return None
    pair = sorted(scene.chance.sample(sorted(found), 2))
    struck = [_send(found[name], signal.SIGKILL) for name in pair]
    if not all(struck):
        return None
    return Disturbance("killed, two at once", " and ".join(pair))


def frozen(scene: Scene) -> Disturbance | None:
    """SIGSTOP to any process, and SIGCONT later."""
    held = set() if scene.held is None else scene.held
    found = {name: pid for name, pid in _all(scene).items() if pid not in held}
    if not found:
        return None
    name = _drawn(scene, found)
    pid = found[name]
    handle = _opened(pid)
    if handle is None:
        return None

    def thaw() -> None:
        _signalled(handle, signal.SIGCONT)
        os.close(handle)
        held.discard(pid)

    if not _signalled(handle, signal.SIGSTOP):
        os.close(handle)
        return None
    held.add(pid)
    seconds, weights = zip(*HOLDS, strict=True)
    return Disturbance("frozen (SIGSTOP, SIGCONT)", name, scene.chance.choices(seconds, weights)[0], thaw)


def slowed(scene: Scene) -> Disturbance | None:
    """The link between two brokers lets pass about a tenth of what it does else: it stands still nine times of ten."""
    held = set() if scene.held is None else scene.held
    link = processes(scene.root).get("link")
    if link is None or link in held:
        return None
    handle = _opened(link)
    if handle is None:
        return None
    held.add(link)
    over = threading.Event()

    def hold() -> None:
        stands, goes = SLOWED
        while _signalled(handle, signal.SIGSTOP) and not over.wait(stands):
            _signalled(handle, signal.SIGCONT)
            over.wait(goes)
        _signalled(handle, signal.SIGCONT)

    holding = threading.Thread(target=hold, daemon=True)
    holding.start()

    def end() -> None:
        over.set()
        holding.join()
        os.close(handle)
        held.discard(link)

    return Disturbance("slowed to about a tenth", "link", scene.chance.uniform(*SLOWED_S), end)


def disk_full(scene: Scene) -> Disturbance | None:
    """Not a byte more fits beside the run's folder, for a while."""
    if scene.disk is None:
        return None
    filler = scene.disk / "filler"
    if filler.exists() or not _room(scene.disk):
        return None
    with filler.open("wb") as file:
        while room := _room(scene.disk):
            try:
                os.posix_fallocate(file.fileno(), 0, room)
                break
            except OSError as error:
                if error.errno != errno.ENOSPC:  # else the run took some of it in the meantime
                    raise
    return Disturbance("disk full", "all", scene.chance.uniform(*FULL_S), lambda: filler.unlink(missing_ok=True))


def _room(disk: Path) -> int:
    """Bytes that still fit."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def clock_stepped(scene: Scene) -> Disturbance | None:
    """The wall clock of all processes is put elsewhere."""
    if scene.clock is None:
        return None
    offset = scene.chance.choice(STEPS)
    set_clock(scene.clock, offset)
    return Disturbance("clock stepped", "all")


def set_clock(file: Path, offset_s: int) -> None:
    """Put the clock of the processes that read this file to the true time and so many seconds."""
    beside = file.with_suffix(".new")
    beside.write_text(f"{offset_s}\n")
    beside.replace(file)


EVERYTHING: Final[tuple[tuple[Deed, int], ...]] = (
    (killed, 35), (ended, 10), (two_killed, 10), (frozen, 25), (slowed, 5), (disk_full, 8), (clock_stepped, 7),
)  # fmt: skip
"""What a soak does, and how often of a hundred times."""


def _struck(scene: Scene, what: str, number: signal.Signals, among: dict[str, int]) -> Disturbance | None:
    if not among:
        return None
    name = _drawn(scene, among)
    return Disturbance(what, name) if _send(among[name], number) else None


def _all(scene: Scene) -> dict[str, int]:
    """The processes of a run, ``r2f`` among them; where it is alone, as for a while after its start, seldom any."""
    found = processes(scene.root)
    return found if len(found) > 1 or scene.chance.random() < 0.2 else {}


def _drawn(scene: Scene, among: dict[str, int]) -> str:
    """One of the processes; ``r2f`` seldom, for all others end with it, and they take a while to be there again."""
    names = sorted(among)
    return scene.chance.choices(names, [1 if name == ROOT else 5 for name in names])[0]


def _opened(pid: int) -> int | None:
    """A handle of that process, even where its number becomes another's; None where it is gone."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _signalled(handle: int, number: signal.Signals) -> bool:
    """Whether the process was still there."""
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    return True


def _send(pid: int, number: signal.Signals) -> bool:
    """Whether the process was still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _name(arguments: list[str]) -> str | None:
    """A process's name by its command line, None for one that is none of ours, or not there yet."""
    if "-m" not in arguments[:-1] or "broker.child" in arguments:
        return None
    module = arguments[arguments.index("-m") + 1]
    name = _MODULES.get(module)
    if name == "codec":
        return f"codec-{arguments[arguments.index('--side') + 1]}"
    return "device-broker" if name == "broker" and "--bridge-to" in arguments else name


def _children(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _arguments(pid: int) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []
