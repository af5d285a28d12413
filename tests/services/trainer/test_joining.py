"""One model for several devices: one that joins and fails at once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.bus.messages import State
from services.trainer import training, waiting
from services.trainer.common import Company, Member
from services.trainer.core.common import Each
from services.trainer.core.fleet import Fleet
from services.trainer.core.job import Job
from services.trainer.remote import DeviceError


class Joins:
    """A device's training that can begin, or cannot."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.plan = None

    async def begin(self, iteration: int) -> None:
        if self.fails:
            raise DeviceError("its connection is lost")


def test_who_fails_while_it_joins_is_lost_and_stops_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        company = Company(Fleet(sharing="common", devices=("a", "b")), tmp_path, SimpleNamespace(), None)  # type: ignore[arg-type]
        for name, fails in (("a", False), ("b", True)):
            (tmp_path / name).mkdir()
            agent = State(session="s", service="agent", online=True, boot="1", samples={"train": 9})
            training: Any = Joins(fails)
            company._ready[name] = Member(name, SimpleNamespace(), agent, training, AsyncExitStack())  # type: ignore[arg-type]

        def steps(plan: object) -> Any:
            return "done"
            yield

        found = await company._each(Each(3, steps, teaches=False))
        assert found == {"a": "done"}
        assert company.joined == ["a"]
        assert company.lost == {"b": "its connection is lost"}

    asyncio.run(scenario())
    assert waiting.outcome(tmp_path / "b") == "its connection is lost"


def test_more_samples_than_can_be_numbered_are_refused() -> None:
    agent = State(session="s", service="agent", online=True, boot="1", samples={"train": 10**11, "test": 9})
    with pytest.raises(ValueError, match="reports 100000000000 train samples"):
        training.check_device(Job(session="s", device="a"), agent)
