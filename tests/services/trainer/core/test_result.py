from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.core import result
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.result import Result


def test_comes_back_and_is_empty_at_first(tmp_path: Path) -> None:
    assert result.read(tmp_path) == Result()
    found = Result(
        clean_before=Evaluation(samples=8, top1=[98.5]),
        faulty_before=Evaluation(samples=8, top1=[70.0, 71.5], top5=[99.0, 98.0]),
    )
    result.write(tmp_path, found)
    assert result.read(tmp_path) == found
    assert [path.name for path in tmp_path.iterdir()] == [result.FILE]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / result.FILE).write_text('{"clean_before": 97}')
    with pytest.raises(ValueError, match=r"result\.json: .*clean_before"):
        result.read(tmp_path)
