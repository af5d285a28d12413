"""Data sets that are made on the spot, each from its seed alone: shapes to segment, crops to enlarge, latent vectors."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from accelsim.datasets.dataset import DataError, Int64
from accelsim.int8.network import UInt8

SHAPES: Final = "shapes"
CROPS: Final = "crops2x"
LATENTS: Final = "latents"
SIDE: Final = 64
"""Of an image of ``shapes``, and of a target of ``crops2x``."""
CLASSES: Final = ("background", "disc", "box", "triangle")
"""Of ``shapes``."""
LIMIT: Final = 3.0
"""Standard deviations at which a latent number is cut off: pixel 0 is worth -3 and 255 is worth 3."""
MOST_LATENTS: Final = 1 << 20


def is_made(source: str) -> bool:
    """Whether a source's name stands for a data set of this module."""
    return source in (SHAPES, CROPS) or source.startswith(f"{LATENTS}:")


class Made(NamedTuple):
    """Training and held-out images uint8 (N, H, W, C), and their targets, where there are any."""

    train_images: UInt8
    train_targets: UInt8 | None
    test_images: UInt8
    test_targets: UInt8 | None


def shapes(train: int = 1500, test: int = 250, seed: int = 7) -> Made:
    """Images 64x64x3 of two to four discs, boxes and triangles on a textured ground, and masks of ``CLASSES``.

    Size, place, colour and direction are random, later shapes lie over earlier ones, and all is under noise. Colours say
    nothing of what a shape is.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    images, masks = _drawn(train + test, random)
    return Made(images[:train], masks[:train], images[train:], masks[train:])


def crops(train: int = 1200, test: int = 200, seed: int = 7) -> Made:
    """Crops of scikit-learn's two photos: targets 64x64x3, images 32x32x3, the mean of each four pixels.

    What is held out is the middle fifth of each photo, of which no training crop shows a pixel.
    """
    # Loaded here: scikit-learn takes a second to import.
    from sklearn.datasets import load_sample_images

    photos = [np.asarray(photo, np.uint8) for photo in load_sample_images().images]
    random = np.random.Generator(np.random.PCG64(seed))
    parts = []
    for count, held_out in ((train, False), (test, True)):
        targets = np.empty((count, SIDE, SIDE, 3), np.uint8)
        for i in range(count):
            photo = photos[i % len(photos)]
            edges = [photo.shape[1] * fifths // 5 for fifths in (0, 2, 3, 5)]
            place = 1 if held_out else 2 * int(random.integers(2))
            part = photo[:, edges[place] : edges[place + 1]]
            y, x = (int(random.integers(size - SIDE + 1)) for size in part.shape[:2])
            targets[i] = part[y : y + SIDE, x : x + SIDE]
        halves = targets.reshape(count, SIDE // 2, 2, SIDE // 2, 2, 3)
        parts += [np.rint(halves.mean(axis=(2, 4))).astype(np.uint8), targets]
    return Made(*parts)


def latents(text: str) -> Made:
    """Vectors of ``latents:Z[:N[:SEED]]``: standard normal numbers, an image uint8 (1, 1, Z) each.

    Beside N, a fifth of that is held out.

    Raises DataError where the text is no such.
    """
    parts = text.split(":")[1:]
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
        raise DataError(f"--data {text}: expected latents:Z[:N[:SEED]], the length of a vector, how many, and their seed")
    length, count, seed = (int(part) for part in (*parts, *("1000", "0")[len(parts) - 1 :]))
    if not 1 <= length <= 4096 or not 8 <= count <= MOST_LATENTS:
        raise DataError(f"--data {text}: Z is 1 to 4096 and N 8 to {MOST_LATENTS}")
    random = np.random.Generator(np.random.PCG64([seed, length]))
    held = max(4, count // 5)
    vectors = quantised(random.standard_normal((count + held, length)))
    return Made(vectors[:count], None, vectors[count:], None)


def quantised(vectors: npt.NDArray[np.floating]) -> UInt8:
    """Latent vectors (N, Z) as images uint8 (N, 1, 1, Z): ``rint((v + 3) * 255 / 6)``, cut off at 0 and 255."""
    pixels = np.rint((vectors.astype(np.float64) + LIMIT) * (255 / (2 * LIMIT)))
    return np.clip(pixels, 0, 255).astype(np.uint8)[:, None, None, :]


def normalisation(length: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by which a network reads such images as the vectors: ``(pixel / 255 - 1/2) * 6``."""
    return (0.5,) * length, (1 / (2 * LIMIT),) * length


def _drawn(count: int, random: np.random.Generator) -> tuple[UInt8, UInt8]:
    """Images uint8 (N, 64, 64, 3) and their masks uint8 (N, 64, 64)."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    ground = _texture(count, random)
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    shown = random.integers(2, 5, count)
    for number in range(4):
        kind = random.integers(1, len(CLASSES), count)
        middle = random.uniform(8, SIDE - 8, (2, count, 1, 1)).astype(np.float32)
        radius = random.uniform(7, 15, (count, 1, 1)).astype(np.float32)
        angle = random.uniform(0, 2 * np.pi, (count, 1, 1)).astype(np.float32)
        inside = _inside(kind, y - middle[0], x - middle[1], radius, angle) & (number < shown)[:, None, None]
        colour = random.uniform(0, 255, (count, 1, 1, 3)).astype(np.float32)
        ground = np.where(inside[..., None], 0.85 * colour + 0.15 * ground, ground)
        masks = np.where(inside, kind[:, None, None].astype(np.uint8), masks)
    ground += random.normal(0, 8, ground.shape).astype(np.float32)
    return np.clip(np.rint(ground), 0, 255).astype(np.uint8), masks


def _texture(count: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Coarse random colours, blurred to the size of an image (N, 64, 64, 3)."""
    coarse = random.uniform(40, 215, (count, 9, 9, 3)).astype(np.float32)
    places = np.linspace(0, 8, SIDE, endpoint=False)
    low, part = places.astype(int), (places % 1).astype(np.float32)[:, None, None]
    rows = coarse[:, low] * (1 - part) + coarse[:, low + 1] * part
    part = part[:, 0, :]
    return np.asarray(rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part, np.float32)


def _inside(
    kind: Int64, y: npt.NDArray[np.float32], x: npt.NDArray[np.float32], radius: npt.NDArray[np.float32],
    angle: npt.NDArray[np.float32],
) -> npt.NDArray[np.bool_]:  # fmt: skip
    """Where a shape of each kind is, about an origin (N, 64, 64)."""
    u, v = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    disc = u * u + v * v <= radius * radius
    box = (np.abs(u) <= 0.85 * radius) & (np.abs(v) <= 0.85 * radius)
    triangle = (v <= 0.6 * radius) & (v >= np.sqrt(3) * np.abs(u) - 1.2 * radius)
    return np.choose(kind[:, None, None] - 1, [disc, box, triangle]).astype(bool)
