"""A display for tests: it acts while a run goes on."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from r2f.display import Display
from r2f.pipeline import Pipeline
from services.bus.messages import Progress


class Watching(Display):
    """A display that does something with each step of the training, given the running pipeline."""

    def __init__(self, each: Callable[[Pipeline, Progress], None] = lambda pipeline, message: None) -> None:
        super().__init__(Console(quiet=True))
        self.each = each
        self.pipeline: Pipeline | None = None
        self.restarts: list[str] = []

    def started(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def restarted(self, name: str) -> None:
        self.restarts.append(name)

    def progress(self, message: Progress) -> None:
        if message.phase == "train" and self.pipeline is not None:
            self.each(self.pipeline, message)
