from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accelsim.datasets import DataError, load
from accelsim.int8.network import INPUT, Flatten, Network


def arrays(n: int = 8, size: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8),
        "train_labels": np.arange(n) % 2,
        "val_images": rng.integers(0, 256, (4, size, size, 3)).astype(np.uint8),
        "val_labels": np.arange(4) % 2,
    }


def test_digits_are_whole_stratified_and_always_the_same() -> None:
    data = load("digits")
    assert data.shape == (8, 8, 1)
    assert data.classes == 10
    assert len(data.train_images) + len(data.test_images) == 1797
    assert data.train_images.max() == 255
    for labels in (data.train_labels, data.test_labels):
        counts = np.bincount(labels)
        assert counts.max() - counts.min() <= 0.1 * counts.mean()
    again = load("digits")
    np.testing.assert_array_equal(again.test_images, data.test_images)
    train = {image.tobytes() for image in data.train_images}
    assert sum(image.tobytes() in train for image in data.test_images) == 0


def test_npz_comes_back_as_it_is(tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / "mine.npz", **given)
    data = load(tmp_path / "mine.npz")
    np.testing.assert_array_equal(data.train_images, given["train_images"])
    np.testing.assert_array_equal(data.test_images, given["val_images"])
    np.testing.assert_array_equal(data.test_labels, given["val_labels"])
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.test_labels.dtype == np.int64


def test_without_test_images_every_fourth_of_a_class_is_held_out(tmp_path: Path) -> None:
    given = arrays(n=20)
    np.savez(tmp_path / "mine.npz", train_images=given["train_images"], train_labels=given["train_labels"])
    data = load(tmp_path / "mine.npz")
    labels = given["train_labels"]
    held = sorted(i for c in (0, 1) for i in np.flatnonzero(labels == c)[3::4])
    np.testing.assert_array_equal(data.test_images, given["train_images"][held])
    np.testing.assert_array_equal(data.train_images, np.delete(given["train_images"], held, axis=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None}, "array train_images is missing; it holds train_labels, val_images, val_labels"),
        ({"train_images": np.zeros((8, 4, 4, 3))}, r"train_images is float64 of shape \(8, 4, 4, 3\), expected uint8"),
        ({"train_images": np.zeros((8, 4), np.uint8)}, r"train_images is uint8 of shape \(8, 4\)"),
        ({"train_labels": np.zeros(7, np.int64)}, r"train_labels is int64 of shape \(7,\), expected .* \(8,\)"),
        ({"train_labels": np.full(8, 0.5)}, "train_labels is float64 .*; it holds 0.5, 0.5"),
        ({"train_labels": np.full(8, -1)}, "classes count from 0"),
        ({"val_images": np.zeros((4, 5, 4, 3), np.uint8)}, "train_images are 4x4x3, val_images are 5x4x3"),
        ({"val_labels": None}, "array val_labels is missing"),
    ],
)
def test_says_what_is_wrong_with_an_npz(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    given = {**arrays(), **change}
    path = tmp_path / "bad.npz"
    np.savez(path, **{key: value for key, value in given.items() if value is not None})
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_never_unpickles(tmp_path: Path) -> None:
    given = {**arrays(), "train_labels": np.array([object()] * 8)}
    np.savez(tmp_path / "bad.npz", **given)
    with pytest.raises(DataError, match="cannot be read as npz"):
        load(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"not a zip"])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as npz"):
        load(tmp_path / "bad.npz")


def test_an_array_file_is_no_npz(tmp_path: Path) -> None:
    with (tmp_path / "bad.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="cannot be read as npz"):
        load(tmp_path / "bad.npz")


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (10, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for k in range(count):
            paint(tmp_path / split / "blue" / f"{k}.png", (0, 0, 250))
            paint(tmp_path / split / "red" / f"{k}.png", (250, 0, k))
    data = load(tmp_path, shape=(4, 5, 3))
    assert data.train_images.shape == (6, 4, 5, 3)
    assert data.test_images.shape == (2, 4, 5, 3)
    np.testing.assert_array_equal(data.train_labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.train_images[0], np.broadcast_to([0, 0, 250], (4, 5, 3)))
    np.testing.assert_array_equal(data.train_images[5], np.broadcast_to([250, 0, 2], (4, 5, 3)))


def test_a_folder_without_a_test_part_and_grey(tmp_path: Path) -> None:
    for k in range(8):
        paint(tmp_path / "only" / f"{k}.png", (k, k, k))
    data = load(tmp_path, shape=(3, 3, 1))
    np.testing.assert_array_equal(data.test_images[:, 0, 0, 0], [3, 7])


def test_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folders in it"):
        load(tmp_path, shape=(4, 4, 3))
    with pytest.raises(DataError, match="size of the network's input must be given"):
        load(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="a: no images in this class folder"):
        load(tmp_path, shape=(4, 4, 3))
    (tmp_path / "a" / "torn.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(DataError, match=r"a/torn.png: cannot be read as an image"):
        load(tmp_path, shape=(4, 4, 3))
    with pytest.raises(DataError, match="not found; data is 'digits'"):
        load(tmp_path / "absent")


def test_a_network_that_does_not_fit(tmp_path: Path) -> None:
    data = load("digits")

    def network(shape: tuple[int, int, int], classes: int) -> Network:
        layer = Flatten(name="flat", inputs=(INPUT,), shape=(1, 1, classes), scale=1.0)
        table = np.zeros((1, 256), np.int8)
        return Network(name="net", input_shape=shape, input_scale=1.0, input_table=table, layers=(layer,))

    data.check(network((8, 8, 1), 10))
    with pytest.raises(DataError, match="images are 8x8x1, network net takes 28x28x1"):
        data.check(network((28, 28, 1), 10))
    with pytest.raises(DataError, match="labels reach 9, network net knows classes 0 to 4"):
        data.check(network((8, 8, 1), 5))
    with pytest.raises(DataError, match="has 3 numbers for 1 channels"):
        load("digits", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
