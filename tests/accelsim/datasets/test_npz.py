"""npz files as people have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from accelsim.datasets import DataError, load


def arrays(n: int = 8, size: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8),
        "train_labels": np.arange(n) % 2,
        "val_images": rng.integers(0, 256, (4, size, size, 3)).astype(np.uint8),
        "val_labels": np.arange(4) % 2,
    }


def saved(path: Path, **change: np.ndarray | None) -> Path:
    given = {**arrays(), **change}
    np.savez(path / "mine.npz", **{key: value for key, value in given.items() if value is not None})
    return path / "mine.npz"


@pytest.mark.parametrize("part", ["test", "val", "valid", "validation"])
def test_comes_back_as_it_is(tmp_path: Path, part: str) -> None:
    given = arrays()
    held = {f"{part}_images": given.pop("val_images"), f"{part}_labels": given.pop("val_labels")}
    np.savez(tmp_path / "mine.npz", **given, **held)
    data = load(tmp_path / "mine.npz")
    np.testing.assert_array_equal(data.train_images, given["train_images"])
    np.testing.assert_array_equal(data.test_images, held[f"{part}_images"])
    np.testing.assert_array_equal(data.test_labels, held[f"{part}_labels"])
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data.test_labels.dtype == np.int64
    assert data.notes == ()
    assert data.class_names is None


def test_without_test_images_every_fourth_of_a_class_is_held_out(tmp_path: Path) -> None:
    given = arrays(n=20)
    np.savez(tmp_path / "mine.npz", train_images=given["train_images"], train_labels=given["train_labels"])
    data = load(tmp_path / "mine.npz")
    labels = given["train_labels"]
    held = sorted(i for c in (0, 1) for i in np.flatnonzero(labels == c)[3::4])
    np.testing.assert_array_equal(data.test_images, given["train_images"][held])
    np.testing.assert_array_equal(data.train_images, np.delete(given["train_images"], held, axis=0))


LABELS = np.arange(8) % 2


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:, None],
        LABELS.astype(float),
        LABELS[:, None].astype(np.float32),
        np.eye(2)[LABELS],
        np.eye(5, dtype=np.uint8)[LABELS],
        np.eye(2, dtype=bool)[LABELS],
        LABELS.astype(bool),
        LABELS.astype(np.uint64),
    ],
)
def test_labels_of_every_form_are_the_same_numbers(tmp_path: Path, labels: np.ndarray) -> None:
    data = load(saved(tmp_path, train_labels=labels))
    np.testing.assert_array_equal(data.train_labels, LABELS)
    assert data.train_labels.dtype == np.int64


def test_grey_images_need_no_channel(tmp_path: Path) -> None:
    given = arrays()
    path = saved(tmp_path, train_images=given["train_images"][..., 0], val_images=given["val_images"][..., :1])
    data = load(path)
    assert data.shape == (6, 6, 1)
    np.testing.assert_array_equal(data.train_images[..., 0], given["train_images"][..., 0])


IMAGES = arrays()["train_images"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None}, "array train_images is missing; it holds train_labels, val_images, val_labels"),
        (
            {"train_images": IMAGES / 255},
            r"float64 of shape \(8, 6, 6, 3\), expected uint8 .* 0 to 1: make it \(images \* 255\)",
        ),
        ({"train_images": IMAGES.astype(np.float32)}, r"its values are 0 to 255: make it images.round\(\)"),
        ({"train_images": IMAGES / 128 - 1}, "as they were before they were normalised"),
        ({"train_images": np.where(IMAGES > 9, IMAGES, np.nan)}, "as they were before they were normalised"),
        ({"train_images": IMAGES.astype(np.int64)}, r"make it images.round\(\)"),
        ({"train_images": IMAGES.astype(np.uint16)}, r"for 16-bit pixels make it \(images / 257\)"),
        ({"train_images": IMAGES.astype(np.int64) * 1000}, "scale them to 0..255"),
        ({"train_images": IMAGES > 128}, r"make it \(images \* 255\)"),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, r"looks like \(N, C, H, W\): images.transpose\(0, 2, 3, 1\)"),
        ({"train_images": IMAGES[..., :1].transpose(0, 3, 1, 2)}, r"looks like \(N, C, H, W\)"),
        ({"train_images": np.zeros((8, 3, 6, 9), np.uint8)}, r"looks like \(N, C, H, W\)"),
        ({"train_images": np.zeros((8, 4), np.uint8)}, r"train_images is uint8 of shape \(8, 4\)"),
        ({"train_images": np.zeros((0, 6, 6, 3), np.uint8)}, r"train_images is uint8 of shape \(0, 6, 6, 3\)"),
        ({"train_labels": np.zeros(7, np.int64)}, r"train_labels is int64 of shape \(7,\), expected .* \(8,\)"),
        ({"train_labels": np.zeros((1, 8), np.int64)}, r"train_labels is int64 of shape \(1, 8\)"),
        ({"train_labels": np.linspace(0, 2, 8)}, "it holds 0.285714, 0.571429"),
        ({"train_labels": np.full(8, np.nan)}, "it holds nan"),
        ({"train_labels": np.array(["cat", "dog"] * 4)}, "np.unique"),
        ({"train_labels": np.full(8, -1)}, "holds -1; classes count from 0"),
        ({"train_labels": np.full(8, 1 << 63, np.uint64)}, "classes count from 0 and there are fewer"),
        ({"train_labels": np.eye(8)[::-1] * 0.9}, "one-hot with a single 1 in each row"),
        ({"train_labels": np.ones((8, 3), np.int64)}, "one-hot with a single 1 in each row"),
        ({"val_images": np.zeros((4, 5, 6, 3), np.uint8)}, "train_images are 6x6x3, val_images are 5x6x3"),
        ({"val_labels": None}, "array val_labels is missing"),
    ],
)
def test_says_what_is_wrong_and_what_to_do(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    path = saved(tmp_path, **change)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_what_a_network_takes_is_right_whatever_it_looks_like(tmp_path: Path) -> None:
    images = np.zeros((8, 3, 6, 9), np.uint8)
    path = saved(tmp_path, train_images=images, val_images=images[:4])
    assert load(path, shape=(3, 6, 9), mean=(0.5,), std=(0.5,)).shape == (3, 6, 9)


def test_says_what_is_not_used(tmp_path: Path) -> None:
    extra = {"test_images": arrays()["val_images"], "test_labels": np.arange(4) % 2, "extra": np.zeros(2)}
    data = load(saved(tmp_path, **extra))
    assert data.notes == (f"{tmp_path / 'mine.npz'}: not used: extra, val_images, val_labels",)


def test_never_unpickles(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as npz"):
        load(saved(tmp_path, train_labels=np.array([object()] * 8)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"not a zip"])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as npz") as refused:
        load(tmp_path / "bad.npz")
    assert "allow_pickle" not in str(refused.value), "nobody is told to load it all the same"


def test_an_array_file_is_no_npz(tmp_path: Path) -> None:
    with (tmp_path / "bad.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="cannot be read as npz"):
        load(tmp_path / "bad.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_torn_file_is_an_error_of_its_own(tmp_path: Path, save: Callable[..., None]) -> None:
    """Bits flipped and ends cut off anywhere: zip's, zlib's and NumPy's readers raise a dozen kinds of errors."""
    save(tmp_path / "mine.npz", **arrays())
    whole = (tmp_path / "mine.npz").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for number in range(300):
        torn = bytearray(whole)
        for place in random.integers(0, len(torn), random.integers(1, 4)):
            torn[place] ^= 1 << random.integers(8)
        (tmp_path / "torn.npz").write_bytes(torn[: random.integers(len(torn))] if number % 5 == 0 else torn)
        try:
            load(tmp_path / "torn.npz")
        except DataError:
            refused += 1
    assert refused > 200
