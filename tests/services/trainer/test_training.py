"""What the trainer asks of a device before it begins, and where it goes on."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.int8.network import Network
from accelsim.lowering import lower
from services.bus.messages import State
from services.trainer import training
from services.trainer.core import checkpoint
from services.trainer.core.job import Job
from services.trainer.patience import ready_s

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


@pytest.mark.parametrize("damage", ["gone", "torn", "empty"])
def test_where_the_newest_checkpoint_is_gone_the_one_before_is_gone_on_from(damage: str, tmp_path: Path) -> None:
    network = made()
    state = training.start(JOB, network)
    for iteration in (3, 6):
        checkpoint.write(tmp_path, state._replace(iteration=iteration))
    newest = tmp_path / checkpoint.FILE
    assert training.resumed(tmp_path, JOB, network).iteration == 6
    if damage == "gone":
        newest.unlink()
    else:
        newest.write_bytes(newest.read_bytes()[:-7] if damage == "torn" else b"")
    assert training.resumed(tmp_path, JOB, network).iteration == 3
    checkpoint.write(tmp_path, state._replace(iteration=9))
    assert training.resumed(tmp_path, JOB, network).iteration == 9


def test_without_any_checkpoint_a_run_begins(tmp_path: Path) -> None:
    assert training.resumed(tmp_path, JOB, made()).iteration == 0


def test_services_are_given_time_by_the_job_s_patience_within_bounds() -> None:
    assert [ready_s(patience) for patience in (5.0, 60.0, 9000.0)] == [60.0, 180.0, 1800.0]


def made() -> Network:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    return lower(zoo.build("digits_cnn", 10).eval(), images, (0.5,), (0.25,), name="small")
