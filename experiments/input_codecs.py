"""Lossless codecs for the inputs: bytes, and speed of one thread, of ours and of the maintained ones.

``python -m experiments.input_codecs --shared ../shared`` prints the table of docs/wire.md ("Inputs"). Rows of imagecodecs are
left out where that package is not installed (``pip install imagecodecs``, 80 MB; R2F itself does not need it). Speeds are in
CPU time, the best of several rounds; every codec gives back the same pixels or the run ends.
"""

from __future__ import annotations

import importlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from accelsim.int8.network import UInt8
from experiments.common import command
from experiments.common.networks import photos
from services.codec.core import inputs

BATCH: Final = 16
ROUNDS: Final = 7


@dataclass(frozen=True, slots=True)
class Codec:
    """Of a batch of uint8 images (N, H, W, C) to what is sent, and back; ``decode`` is told the shape."""

    name: str
    encode: Callable[[UInt8], list[bytes]]
    decode: Callable[[list[bytes], tuple[int, ...]], UInt8]


def each(name: str, encode: Callable[[UInt8], bytes], decode: Callable[[bytes], Any]) -> Codec:
    """A codec of single images, (H, W, 3) or (H, W)."""

    def there(images: UInt8) -> list[bytes]:
        return [encode(image[:, :, 0] if image.shape[2] == 1 else image) for image in images]

    def back(files: list[bytes], shape: tuple[int, ...]) -> UInt8:
        decoded = np.stack([np.asarray(decode(data)) for data in files])
        # WebP has no grey.
        return decoded[..., : shape[3]] if decoded.ndim == 4 else decoded.reshape(shape)

    return Codec(name, there, back)


def pillow(name: str, kind: str, **options: object) -> Codec:
    """A format of Pillow."""

    def encode(image: UInt8) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, **options)
        return buffer.getvalue()

    return each(name, encode, lambda data: Image.open(io.BytesIO(data)))


def codecs() -> Iterator[Codec]:
    """All that are measured."""
    yield Codec(
        "**predicted**",
        lambda images: [inputs.encode(images)],
        lambda files, shape: inputs.decode(files[0], shape[0], shape[1:]),
    )
    yield pillow("WebP, method 0", "WEBP", lossless=True, method=0, quality=20)
    yield pillow("WebP, method 4", "WEBP", lossless=True, method=4)
    yield pillow("PNG, level 1", "PNG", compress_level=1)
    yield pillow("PNG, level 6", "PNG")
    try:
        others = importlib.import_module("imagecodecs")
    except ModuleNotFoundError:
        return
    for effort in (1, 2, 3):
        encode = partial(others.jpegxl_encode, lossless=True, effort=effort, numthreads=1)
        yield each(f"JPEG XL, effort {effort}", encode, partial(others.jpegxl_decode, numthreads=1))
    yield each("HTJ2K", others.htj2k_encode, others.htj2k_decode)
    yield each("JPEG-LS", others.jpegls_encode, others.jpegls_decode)
    yield each("JPEG XR", others.jpegxr_encode, others.jpegxr_decode)
    yield each("QOI", others.qoi_encode, others.qoi_decode)


def measure(codec: Codec, images: UInt8, rounds: int = ROUNDS) -> tuple[float, float, float]:
    """Share (0 to 1) of the raw bytes, MB/s of encoding, MB/s of decoding. Raises ValueError where pixels come back changed."""
    sent = codec.encode(images)
    if not np.array_equal(codec.decode(sent, images.shape), images):
        raise ValueError(f"{codec.name}: other pixels than were encoded")
    there = _least(lambda: codec.encode(images), rounds)
    back = _least(lambda: codec.decode(sent, images.shape), rounds)
    return sum(map(len, sent)) / images.nbytes, images.nbytes / there / 1e6, images.nbytes / back / 1e6


def _least(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


def line(codec: Codec, sets: Sequence[tuple[str, UInt8]]) -> str:
    """The Markdown row of a codec: share of the raw bytes; MB/s of encoding and of decoding."""
    cells = []
    for _, images in sets:
        if images.shape[3] == 1 and codec.name == "QOI":
            cells.append("-")  # colours only
            continue
        share, there, back = measure(codec, np.ascontiguousarray(images))
        cells.append(f"{100 * share:.1f} %; {there:.0f}, {back:.0f}")
    return f"| {codec.name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Prints a Markdown row a codec."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    given = parser.parse_args()
    with np.load(command.real(given.shared, "data/cifar10.npz")) as arrays:
        small = arrays["test_images"][:BATCH]
    sets: list[tuple[str, UInt8]] = [
        ("ImageNet 224x224", photos(given.shared)[100 : 100 + BATCH]),
        ("CIFAR-10 32x32", small),
        ("digits 8x8", (load_digits().images[:BATCH, :, :, None] * 255 / 16).astype(np.uint8)),
    ]
    print("| batch of 16, bytes of raw; encode, decode MB/s | " + " | ".join(name for name, _ in sets) + " |")
    print("|---" * (1 + len(sets)) + "|")
    for codec in codecs():
        print(line(codec, sets), flush=True)


if __name__ == "__main__":
    command.run(main)
