"""Data sets that are made here, and pairs and latents in npz files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelsim.datasets import DataError, load
from accelsim.datasets import made as making
from accelsim.lowering import normalise


def test_shapes_are_the_same_again_and_masks_are_where_they_are() -> None:
    one, again, other = making.shapes(20, 5), making.shapes(20, 5), making.shapes(20, 5, seed=8)
    for a, b, c in zip(one, again, other, strict=True):
        assert a is not None
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    assert one.train_images.shape == (20, 64, 64, 3)
    assert one.train_targets is not None
    assert np.unique(one.train_targets).tolist() == [0, 1, 2, 3]
    share = (one.train_targets > 0).mean()
    assert 0.1 < share < 0.5
    # Inside a shape pixels differ by noise and what of the ground shines through, across its edge by the colours.
    images = one.train_images.astype(float)
    inside = one.train_targets[:, 1:] == one.train_targets[:, :-1]
    steps = np.abs(np.diff(images, axis=1)).mean(axis=3)
    assert steps[~inside].mean() > 3 * steps[inside & (one.train_targets[:, 1:] > 0)].mean()


def test_crops_are_halved_and_no_held_out_pixel_was_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = np.zeros((100, 640, 3), np.uint8)
    photo[:, 256:384] = 200  # what is held out
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: type("Bunch", (), {"images": [photo]}))
    found = making.crops(30, 10)
    assert found.train_targets is not None
    assert found.test_targets is not None
    assert (found.train_targets.max(), found.test_targets.min()) == (0, 200)
    monkeypatch.undo()
    found = making.crops(6, 4)
    assert (found.train_images.shape, found.test_images.shape) == ((6, 32, 32, 3), (4, 32, 32, 3))
    assert found.train_targets is not None
    corner = found.train_targets[:, :2, :2].astype(float).mean(axis=(1, 2))
    np.testing.assert_allclose(found.train_images[:, 0, 0], corner, atol=0.51)


def test_latents_are_read_by_a_network_as_they_were_drawn() -> None:
    data = load("latents:5:40:3")
    assert (data.kind, data.shape, data.classes, len(data.train_images), len(data.test_images)) == (
        "nothing",
        (1, 1, 5),
        0,
        40,
        8,
    )
    vectors = normalise(data.train_images, data.mean, data.std).numpy()[:, :, 0, 0]
    np.testing.assert_array_equal(making.quantised(vectors), data.train_images)
    assert abs(vectors.mean()) < 0.2
    assert 0.8 < vectors.std() < 1.2
    assert np.abs(vectors).max() <= 3.00001
    np.testing.assert_array_equal(data.train_images, load("latents:5:40:3").train_images)
    assert (data.train_images != load("latents:5:40:4").train_images).any()


@pytest.mark.parametrize(
    "text", ["latents:", "latents:x", "latents:0", "latents:5:7", "latents:5000", "latents:5:40:1:1", "latents:-1"]
)
def test_latents_that_mean_nothing_are_named(text: str) -> None:
    with pytest.raises(DataError, match="--data latents:"):
        load(text)


PAIR = {
    "train_images": np.zeros((8, 4, 4, 3), np.uint8), "train_targets": np.zeros((8, 8, 8, 3), np.uint8),
    "test_images": np.ones((4, 4, 4, 3), np.uint8), "test_targets": np.ones((4, 8, 8, 3), np.uint8),
}  # fmt: skip


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path / "pairs.npz", **{name: array for name, array in arrays.items() if array is not None})
    return path / "pairs.npz"


def test_pairs_of_images_of_two_sizes(tmp_path: Path) -> None:
    data = load(saved(tmp_path, **PAIR))
    assert data.kind == "images"
    assert data.train_targets is not None
    assert (data.shape, data.train_targets.shape) == ((4, 4, 3), (8, 8, 8, 3))
    assert data.digest() != load(saved(tmp_path, **{**PAIR, "train_targets": PAIR["train_images"], "test_targets": PAIR["test_images"]})).digest()  # fmt: skip  # noqa: E501
    assert data.sha256() != load(saved(tmp_path, **{**PAIR, "test_targets": PAIR["test_targets"] + 1})).sha256()


def test_masks_and_their_names(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).integers(0, 5, (8, 4, 4))
    path = saved(tmp_path, train_images=PAIR["train_images"], train_targets=masks)
    data = load(path)
    assert (data.kind, data.classes, len(data.train_images), len(data.test_images)) == ("masks", 5, 6, 2)
    np.testing.assert_array_equal(data.test_targets, masks[3::4])
    assert load(path, classes=[*"abcdef"]).classes == 6
    with pytest.raises(DataError, match=r"masks reach class 4, but the class list has 2 names"):
        load(path, classes=["a", "b"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test_targets": None}, "array test_targets is missing"),
        ({"train_targets": np.zeros((7, 8, 8, 3), np.uint8)}, r"is uint8 of shape \(7, 8, 8, 3\), expected 8 uint8 images"),
        ({"train_targets": np.zeros((8, 8, 8, 3))}, r"train_targets is float64 .* expected uint8"),
        ({"train_targets": np.zeros((8, 4, 4))}, "masks are integers"),
        ({"train_targets": np.full((8, 4, 4), -1)}, r"holds -1 to -1; classes are 0 to 255"),
        ({"test_targets": np.zeros((4, 4, 4, 3), np.uint8)}, "train_targets are 8x8x3, test_targets are 4x4x3"),
    ],
)  # fmt: skip
def test_pairs_that_do_not_fit_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        load(saved(tmp_path, **{**PAIR, **change}))


def test_latents_of_a_file(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((20, 6))
    data = load(saved(tmp_path, latents=vectors))
    assert (data.kind, len(data.train_images), len(data.test_images), data.shape) == ("nothing", 16, 4, (1, 1, 6))
    seen = normalise(data.train_images, data.mean, data.std).numpy()[:, :, 0, 0]
    np.testing.assert_allclose(seen, np.clip(vectors[:16], -3, 3), atol=3 / 255 + 1e-6)
    steps = np.arange(-127, 113).reshape(8, 30).astype(np.int8)
    data = load(saved(tmp_path, latents=steps))
    np.testing.assert_allclose(
        normalise(data.train_images, data.mean, data.std).numpy()[:, :, 0, 0], steps[:7] * (3 / 127), atol=3 / 255 + 1e-6
    )


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.zeros((20, 2, 2)), r"expected floats or int8 of shape \(N, Z\)"),
        (np.zeros((20, 2), np.int64), r"expected floats or int8"),
        (np.zeros((3, 2)), "3 vectors are too few"),
        (np.full((20, 2), np.nan), "not finite"),
        (np.full((20, 2), 40.0), "reaches 40; numbers are cut off at 3"),
    ],
)
def test_latents_that_cannot_be_used_are_named(vectors: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        load(saved(tmp_path, latents=vectors))
