"""The page of results: filled from files, and nothing else on it touched."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from experiments import results
from experiments.common import command, figure
from experiments.common.figure import Point
from experiments.common.retraining import Accuracy
from experiments.recover import Recovered

PAGE = "# Results\n\n<!-- recover -->\nold\n<!-- end -->\n\nwords\n\n<!-- fig8_batch -->\n<!-- end -->\nlast\n"


def recovered() -> Recovered:
    accuracy = {name: Accuracy(mean, 0.5, 5) for name, mean in (("clean", 90.0), ("before", 70.0), ("after", 85.0))}
    return Recovered(
        network="a", data="b", ber=1e-4, overhead=50, overhead_used=48.76, metric="top5", images=200, seeds=(1,), **accuracy,
        untrained=Accuracy(80.0, 1.0, 5), clean_after=Accuracy(89.0, 0.0, 1), recovered=0.75, deployed="last", iterations=25,
        bytes=3_000_000, bytes_up=2, bytes_down=1, seconds=1.0, recipe={},
    )  # fmt: skip


def test_parts_are_filled_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "recover_a.json").write_bytes(msgspec.json.encode(recovered()))
    figure.write(
        [Point("a", "DRM", 16, 1e-4, "top1", 40, Accuracy(80.0, 1.0, 5), 250, 0.0)], tmp_path / "fig8_batch.csv", "batch"
    )
    page, left = results.filled(PAGE, tmp_path)
    assert not left
    assert "| a | 0.0001 | 48.8 % | top5 of 200 | 90.0 ± 0.5 | 70.0 ± 0.5 | 85.0 ± 0.5 | 5 | 75 % | 25 | 3.0 |" in page
    assert "| a | 0.0001 | 16 | 80.0 ± 1.0 |" in page
    assert "old" not in page
    assert page.startswith("# Results\n\n<!-- recover -->\n")
    assert page.endswith("<!-- end -->\nlast\n")
    assert results.filled(page, tmp_path) == (page, [])


def test_what_was_not_measured_stays_and_is_named(tmp_path: Path) -> None:
    assert results.filled(PAGE, tmp_path) == (PAGE, ["recover", "fig8_batch"])


def test_a_folder_that_is_not_there_fills_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    monkeypatch.setattr("sys.argv", ["results", "--measured", str(tmp_path / "no"), "--page", str(tmp_path / "page.md")])
    with pytest.raises(command.InputError, match="no: no such folder"):
        results.main()
    assert (tmp_path / "page.md").read_text() == PAGE


def test_points_are_read_as_they_were_written(tmp_path: Path) -> None:
    wrote = [
        Point("a", "DRM", 1e-4, 1e-4, "top1", 40, Accuracy(80.0, 1.0, 5), 250, 0.25),
        Point("a", "ours", 1e-4, 1e-4, "top1", 40, None, 0, 0.0),
    ]
    figure.write(wrote, tmp_path / "a.csv", "ber")
    assert results.points(tmp_path / "a.csv", "ber") == wrote


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "fig8_batch.csv").write_text("a,b\n1,2\n")
    with pytest.raises(command.InputError, match=r"fig8_batch\.csv"):
        results.filled(PAGE, tmp_path)
    (tmp_path / "recover_a.json").write_text("{}")
    with pytest.raises(command.InputError, match=r"recover_a\.json"):
        results.filled(PAGE, tmp_path)
