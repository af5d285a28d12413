"""What may choose what: the parts of a data set do not overlap where they must not, and are the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accelsim.datasets import DataError, Dataset, load
from experiments.common import splits
from r2f import prepare


def numbered(train: int = 23, test: int = 4) -> Dataset:
    """Images whose pixels and labels say their place; test images count from 100."""

    def images(first: int, count: int) -> np.ndarray:
        return np.broadcast_to(np.arange(first, first + count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 1)).copy()

    return Dataset(
        name="numbered", train_images=images(0, train), train_labels=np.arange(train), test_images=images(100, test),
        test_labels=np.arange(100, 100 + test), mean=(0.5,), std=(0.5,),
    )  # fmt: skip


def test_every_fifth_chooses_and_the_others_train() -> None:
    assert splits.selection(23).tolist() == [4, 9, 14, 19]
    assert sorted([*splits.selection(23), *splits.training(23)]) == list(range(23))


def test_calibration_is_what_a_run_on_the_training_part_quantises_by() -> None:
    data = splits.choosing(numbered())
    assert splits.calibration(23).tolist() == data.train_labels[prepare.calibration(data)].tolist()
    many = splits.calibration(20000)
    assert len(many) == prepare.CALIBRATION
    assert not set(many) & set(splits.selection(20000))


def test_choosing_sees_no_report_image_and_trains_on_none_it_chooses_by() -> None:
    data = splits.choosing(numbered())
    assert data.test_labels.tolist() == data.test_images[:, 0, 0, 0].tolist() == [4, 9, 14, 19]
    assert data.train_labels.tolist() == data.train_images[:, 0, 0, 0].tolist() == splits.training(23).tolist()


def test_reporting_trains_on_all_that_is_not_reported_and_tests_on_the_sets_own() -> None:
    data = splits.reporting(numbered())
    assert data.train_labels.tolist() == list(range(23))
    assert data.test_labels.tolist() == [100, 101, 102, 103]


def test_reporting_on_other_images(tmp_path: Path) -> None:
    path = tmp_path / "more.npz"
    np.savez(path, images=np.full((3, 2, 2, 1), 7, np.uint8), labels=np.array([1, 2, 3], np.int16))
    data = splits.reporting(numbered(), path)
    assert data.test_labels.tolist() == [1, 2, 3]
    assert data.test_labels.dtype == np.int64
    assert (data.test_images == 7).all()
    assert data.name == "numbered, reported on more.npz"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((3, 2, 2, 1), np.uint8)}, "labels"),
        ({"images": np.zeros((3, 2, 2, 3), np.uint8), "labels": np.zeros(3, int)}, r"expected uint8 \(N, 2, 2, 1\)"),
        ({"images": np.zeros((3, 2, 2, 1)), "labels": np.zeros(3, int)}, "images are float64"),
        ({"images": np.zeros((3, 2, 2, 1), np.uint8), "labels": np.zeros(2, int)}, r"labels are int64 \(2,\)"),
        ({"images": np.zeros((3, 2, 2, 1), np.uint8), "labels": np.zeros(3)}, "labels are float64"),
        ({"images": np.zeros((0, 2, 2, 1), np.uint8), "labels": np.zeros(0, int)}, "images is empty"),
        ({"images": np.zeros((3, 2, 2, 1), np.uint8), "labels": np.array([0, 1, 104])}, "run from 0 to 104"),
        ({"images": np.zeros((3, 2, 2, 1), np.uint8), "labels": np.array([-1, 1, 2])}, "run from -1 to 2"),
    ],
)
def test_other_images_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    path = tmp_path / "more.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=said) as raised:
        splits.reporting(numbered(), path)
    assert str(path) in str(raised.value)


def test_other_images_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.npz"):
        splits.reporting(numbered(), tmp_path / "gone.npz")


def test_too_few_to_split_are_refused() -> None:
    with pytest.raises(DataError, match="4 training images"):
        splits.choosing(numbered(train=4))


def test_the_digits_split() -> None:
    data = load("digits")
    assert [len(part) for part in (splits.choosing(data).test_images, splits.reporting(data).test_images)] == [270, 445]
