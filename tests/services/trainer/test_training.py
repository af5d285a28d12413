"""What the trainer asks of a device before it begins."""

from __future__ import annotations

import msgspec
import pytest

from services.bus.messages import State
from services.trainer import training
from services.trainer.core.job import Job

JOB = Job(session="s", device="edge-0", batch=32, data="d1")
AGENT = State(session="s", service="agent", online=True, samples={"train": 32, "test": 1}, data="d1")


def test_a_device_that_has_what_the_job_needs() -> None:
    training.check_device(JOB, AGENT)
    training.check_device(JOB, msgspec.structs.replace(AGENT, data=""))


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        ({"samples": {"train": 32}}, "no test samples"),
        ({"samples": {"train": 0, "test": 9}}, "no train samples"),
        ({"data": "d2"}, "other classes or images of another size"),
    ],
)
def test_a_device_that_has_not(agent: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"'edge-0' has .*{said}"):
        training.check_device(JOB, msgspec.structs.replace(AGENT, **agent))
