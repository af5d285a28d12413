"""A broker and a stand-in for ThingsBoard, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker.launch import Running, launch
from tests.services.thingsboard.standin import Standin


@pytest.fixture
async def broker() -> AsyncIterator[Running]:
    async with launch(embedded=True) as running:
        yield running


@pytest.fixture
async def tb() -> AsyncIterator[Standin]:
    standin = Standin()
    standin.add("gateway", "TOKEN", gateway=True)
    await standin.start()
    yield standin
    await standin.stop()
