"""Views of images against a plain loop, by the words of their docstring."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from services.scheme import View
from services.views import seen

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 9, 3), dtype=np.uint8)


def by_hand(images: np.ndarray, view: View) -> np.ndarray:
    made = np.zeros_like(images)
    n, height, width, _ = images.shape
    for i in range(n):
        h = xxhash.xxh3_64_intdigest(view.seed.to_bytes(8, "little") + i.to_bytes(8, "little"))
        down, right = ((k % (2 * view.shift + 1)) - view.shift for k in (((h >> 1) % 2**31), h >> 32))
        for y in range(height):
            for x in range(width):
                row, column = min(max(y - down, 0), height - 1), min(max(x - right, 0), width - 1)
                if view.flip and h % 2:
                    column = width - 1 - column
                made[i, y, x] = images[i, row, column]
    return made


@pytest.mark.parametrize("view", [View(seed=7, flip=True), View(seed=8, shift=2), View(seed=9, flip=True, shift=3)])
def test_is_what_its_words_say(view: View) -> None:
    np.testing.assert_array_equal(seen(IMAGES, view), by_hand(IMAGES, view))
    assert not np.array_equal(seen(IMAGES, view), IMAGES)


def test_flips_about_half_and_moves_every_way() -> None:
    same = np.tile(np.arange(9, dtype=np.uint8)[None, None, :, None], (400, 6, 1, 1))
    flipped = seen(same, View(seed=1, flip=True))[:, 0, 0, 0] == 8
    assert 150 < flipped.sum() < 250
    assert set(seen(same, View(seed=1, shift=2))[:, 0, 4, 0].tolist()) == {2, 3, 4, 5, 6}


def test_without_a_view_images_are_as_they_are() -> None:
    assert seen(IMAGES, None) is IMAGES
    np.testing.assert_array_equal(seen(IMAGES, View(seed=3)), IMAGES)
    with pytest.raises(ValueError, match=r"expected uint8 images \(N, H, W, C\), got float32"):
        seen(IMAGES.astype(np.float32), View(seed=3))
