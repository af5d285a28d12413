"""What the trainer asks of a device before it begins."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import structlog
import torch

from accelsim import zoo
from accelsim.lowering import lower
from services.bus.messages import State
from services.trainer import training
from services.trainer.core import checkpoint
from services.trainer.core.job import Job
from services.trainer.core.step import start

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


def test_a_run_whose_newest_checkpoint_is_missing_goes_on_from_the_one_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    network = lower(zoo.build("digits_cnn", 10).eval(), images, (0.5,), (0.25,))
    first = start(JOB, network)
    assert training.resumed(tmp_path, JOB, network).iteration == 0
    for iteration in (3, 7):
        checkpoint.write(tmp_path, first._replace(iteration=iteration))
    (tmp_path / checkpoint.FILE).unlink()
    with structlog.testing.capture_logs() as logged:
        assert training.resumed(tmp_path, JOB, network).iteration == 3
    assert str(tmp_path / checkpoint.FILE) in logged[0]["reason"]
    (tmp_path / checkpoint.PREVIOUS).unlink()
    assert training.resumed(tmp_path, JOB, network).iteration == 0
