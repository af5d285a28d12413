"""The table of JPEG inputs, on the trained CIFAR-10 network and a few of its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import int8_accuracy


def test_jpeg_rows_compare_with_lossless(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = int8_accuracy.images_of
    monkeypatch.setattr(int8_accuracy, "images_of", lambda *where: tuple(part[:60] for part in whole(*where)))
    lossless, fine, rough = (
        [cell.strip() for cell in row.strip("| ").split("|")]
        for row in int8_accuracy.jpeg_rows("resnet20", shared_dir, 32, [95, 10])
    )
    assert [row[1] for row in (lossless, fine, rough)] == ["lossless", "JPEG 95", "JPEG 10"]
    assert lossless[5] == "100.0 / 100.0"
    shares = [float(row[2].split()[0]) for row in (lossless, fine, rough)]
    assert shares == sorted(shares, reverse=True)
    top1 = [np.array(row[3].split(" / ") + row[4].split(" / "), float)[::2] for row in (lossless, fine, rough)]
    assert (top1[0] > 80).all()
    # At quality 10 a 32x32 image has hardly anything left.
    assert (top1[2] < top1[1] - 20).all()
