"""What a run shows while it goes on: one bar a phase, the last iteration's loss and bytes; ninety columns are enough."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from r2f.pipeline import Pipeline
from services.bus.messages import Phase, Progress, Timing
from services.codec.core.segments import MODEL
from services.metric import METRICS, written
from services.shown import plain

_TITLES: dict[Phase, str] = {
    "plain": "evaluating as in the paper",
    "before": "evaluate before",
    "select": "choose what is deployed",
    "train": "retrain in the loop",
    "after": "evaluate after",
    "done": "done",
}


class Display:
    """The live display, as a context manager. Lines instead of bars where the console is no terminal. ``browser``: whether the
    run's page, if it has one, is to be opened."""

    def __init__(self, console: Console, *, browser: bool = False) -> None:
        self.console = console
        self.browser = browser
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._sent: dict[int, int] = defaultdict(int)
        self.devices = 1
        """That the run has; of several, steps are counted together."""
        self._begun: int | None = None
        """Iterations that have begun; None where nothing has been heard of the run yet."""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A step whose length is not known."""
        task = self._bars.add_task(title, total=None, detail="")
        self._line(f"{title} ...")
        yield
        self._bars.update(task, total=1, completed=1)
        self._line(f"{title}: done")

    @contextmanager
    def counting(self, title: str, *, every: bool = False) -> Iterator[Callable[[int, int | None, str], None]]:
        """A step of many; call what it gives with how many are done, of how many where that is known, and a detail.

        Where the console is no terminal, a tenth is a line, or every call.
        """
        task = self._bars.add_task(title, total=None, detail="", visible=False)

        def tell(done: int, total: int | None, detail: str) -> None:
            self._bars.update(task, completed=done, total=total, detail=detail, visible=True)
            if every or total is None or done % max(1, total // 10) == 0 or done == total:
                self._line(f"{title}: {done}{'' if total is None else f'/{total}'} {detail}".rstrip())

        yield tell

    def progress(self, message: Progress) -> None:
        """The trainer is this far."""
        if message.phase == "done":
            return
        if message.phase == "train":
            # A check is heard of before the iteration that it belongs to.
            self._begun = message.step + 1
        elif message.phase in ("plain", "before"):
            self._begun = 0
        title = _TITLES[message.phase] if message.faults else f"{_TITLES[message.phase]}, no faults"
        task = self._tasks.get(title)
        if task is None:
            task = self._tasks[title] = self._bars.add_task(title, total=message.steps, detail="")
        if message.phase == "train":
            detail = self._training(message)
        else:
            # Answers that choose what is deployed are held against one another, not counted.
            detail = (
                "" if message.phase == "select" else f"{METRICS[message.metric].title} {written(message.metric, message.value)}"
            )
        self._bars.update(task, completed=message.step, total=message.steps, detail=detail)
        if message.phase == "select":
            # A check is many passes: a line when it is over.
            if message.step == message.steps:
                self._line(f"{title}: {self._checked(message)}")
        elif message.phase != "train" or message.step % 10 == 0 or message.step == message.steps:
            self._line(f"{title}: {message.step}/{message.steps} {detail}".rstrip())

    def _checked(self, message: Progress) -> str:
        """What a check was of."""
        if not message.faults:
            return "fault-free answers taken"
        if self.devices > 1 or self._begun is None:
            return "checked"
        done = self._begun
        self._begun = max(done, 1)  # the next check is of the first iteration at the earliest
        return f"checked after iteration {done}" if done else "checked before retraining"

    def _training(self, message: Progress) -> str:
        # The events of the iteration before are all here.
        sent = self._sent.pop(message.step - 2, 0)
        up = f" up {sent / 1000:.1f} kB" if sent else ""
        return f"loss {message.value:.3f}{up}"

    def timing(self, message: Timing) -> None:
        """A stage of an iteration took this long, and put so many bytes on the link."""
        if message.segment != MODEL:
            self._sent[message.iteration] += message.bytes

    def started(self, pipeline: Pipeline) -> None:
        """The processes run."""

    def restarted(self, name: str) -> None:
        """A process was killed and is started again."""
        self.note(f"{name} was killed; started again")

    def note(self, text: str) -> None:
        """A line for the user, above the bars."""
        self.console.print(Text(plain(text), style="yellow"))

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(Text(plain(text)))
