from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from accelsim.faults import Rates
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


@pytest.mark.parametrize("change", [{"batch": 0}, {"patience_s": 0.0}, {"seed": 1001}, {"evaluation_seeds": ()}])
def test_what_makes_no_sense_is_named(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"job: .*{next(iter(change)).removesuffix('s')}"):
        Job(**{**msgspec.structs.asdict(JOB), **change})
