from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from accelsim import zoo
from accelsim.faults import Rates
from accelsim.lowering import lower
from services.scheme import Scheme
from services.trainer.core import job
from services.trainer.core.job import Job

JOB = Job(session="s", device="d", rates=Rates(weight=1e-4), iterations=3)


def test_comes_back_from_its_folder(tmp_path: Path) -> None:
    job.write(tmp_path, JOB)
    assert job.read(tmp_path) == JOB
    path = tmp_path / job.FILE
    path.write_text(path.read_text().replace('"batch"', '"bulk"'))
    with pytest.raises(ValueError, match=r"job\.json: .*bulk"):
        job.read(tmp_path)


def test_a_checkpoint_is_of_another_job_where_that_would_end_in_another_model() -> None:
    def other(**changes: object) -> str:
        return job.digest(msgspec.structs.replace(JOB, **changes))

    assert other(checkpoint_every=3) == other(patience_s=1.0) == job.digest(JOB)
    assert len({other(seed=1), other(batch=4), other(scheme=Scheme(vote="bitwise")), job.digest(JOB)}) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 0}, {"batch": 0}, {"evaluation_samples": 0}, {"evaluation_batch": -1}, {"checkpoint_every": 0},
        {"patience_s": 0.0}, {"patience_s": float("nan")}, {"patience_s": float("inf")}, {"seed": 1001},
        {"evaluation_seeds": ()},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"job: .*{next(iter(change)).removesuffix('s')}"):
        Job(**{**msgspec.structs.asdict(JOB), **change})


def test_a_file_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    job.write(tmp_path, JOB)
    path = tmp_path / job.FILE
    path.write_text(path.read_text().replace('"evaluation_samples": 1000', '"evaluation_samples": 0'))
    with pytest.raises(ValueError, match=r"job\.json: .*evaluation_samples"):
        job.read(tmp_path)


def test_only_mac_layers_of_the_network_are_protected() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    network = lower(zoo.build("digits_cnn", 10).eval(), images, (0.5,), (0.25,), name="small")
    macs = [index for index, _ in network.convs()]
    job.check(msgspec.structs.replace(JOB, scheme=Scheme(protected=tuple(macs))), network)
    others = [index for index in range(len(network.layers)) if index not in macs]
    for index in (99, -1, *others):
        with pytest.raises(ValueError, match=f"layer {index} cannot be protected; MAC layers of small are 0, "):
            job.check(msgspec.structs.replace(JOB, scheme=Scheme(protected=(0, index))), network)
    with pytest.raises(ValueError, match="with codec golden no layers are protected"):
        msgspec.structs.replace(JOB, scheme=Scheme(codec="golden", protected=(0,)))
