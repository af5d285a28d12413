"""Coverage-guided fuzzing of every decoder of the link, for long runs by hand; the short ones are in the tests beside it.

``pip install atheris``, then ``python tests/services/codec/core/fuzz_decoders.py -max_total_time=300 CORPUS``. CORPUS
gets the seeds: real bodies of every coding. A decoder may return what its caller asked for or raise CodecError; anything
else, memory beyond what the shape allows included (``-rss_limit_mb``), stops the run and leaves the input behind.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

import services.codec.core.entropy_kernels
import services.codec.core.pixels  # noqa: F401  compiled code cannot be instrumented, so it comes first

with atheris.instrument_imports(include=["services.codec"]):
    from services.codec.core import codings, entropy, inputs, layers, model
    from services.codec.core.bodies import CodecError

import numpy as np
from test_entropy import errors
from test_inputs import photo
from test_model import conv, trained

from accelsim.int8.network import INPUT, Flatten, Network

SHAPES = ((2, 5, 7, 6), (1, 1, 1, 40), (3, 9, 4, 1), (2, 7, 7, 12))
IMAGES = ((2, 24, 24, 3), (2, 8, 8, 1), (1, 6, 5, 4))
TABLE = np.tile(np.arange(-128, 128, dtype=np.int8), (3, 1))
BASE = Network(
    name="toy",
    input_shape=(4, 4, 3),
    input_scale=0.25,
    input_table=TABLE,
    layers=(
        conv("first", INPUT, (4, 4, 8), (8, 3, 3, 3), 0.25),
        Flatten(name="flat", inputs=(0,), shape=(1, 1, 128), scale=0.5),
        conv("last", 1, (1, 1, 10), (10, 128, 1, 1), 0.5),
    ),
)


def one(data: bytes) -> None:
    """The first byte chooses the decoder and what it is told to expect, the rest is the body."""
    if not data:
        return
    which, body = data[0] % 9, data[1:]
    try:
        if which < 4:
            shape = SHAPES[which]
            size = int(np.prod(shape))
            dtype = np.dtype(np.uint8 if which % 2 else np.int8)
            guarded = np.full(3 * size, 77, dtype)
            rebuilt = layers.decode(body, guarded[size : 2 * size].reshape(shape), shape, dtype)
            assert rebuilt.shape == shape
            assert rebuilt.dtype == dtype
            assert (guarded == 77).all()
        elif which < 7:
            count, *shape3 = IMAGES[which - 4]
            assert inputs.decode(body, count, shape3).shape == (count, *shape3)
        else:
            rebuilt_network = model.decode(BASE if which == 7 else None, body)
            assert len(rebuilt_network.layers) > 0
    except CodecError:
        pass


def seeds(folder: Path) -> None:
    """Real bodies of every coding, one a file."""
    folder.mkdir(parents=True, exist_ok=True)
    bodies: list[bytes] = []
    for which, shape in enumerate(SHAPES):
        generator = np.random.default_rng(which)
        vote = generator.integers(-128, 128, shape, dtype=np.int8)
        for flips in ((0, 0, 0), (1, 1, 2), (4, 9, 9)):
            actual = vote + errors(shape, *flips)
            for codec in ("direct", "golden", "chained"):
                bodies.append(bytes([which]) + layers.encode(actual, vote, codec))
            body = entropy.encode(actual, vote, 10 * actual.size + 64)
            assert body is not None
            bodies.append(bytes([which, codings.TABLE["increments, entropy"].tag]) + body)
    for which, shape in enumerate(IMAGES):
        images = photo(*shape)
        bodies.append(bytes([4 + which]) + inputs.encode(images))
        bodies.append(bytes([4 + which]) + inputs.floats(images))
        if shape[3] != 4:
            bodies.append(bytes([4 + which]) + inputs.lossy(images, 80)[0])
            bodies.append(bytes([4 + which]) + inputs.lossy(images, 80, "WEBP")[0])
        bodies.append(bytes([4 + which]) + inputs.encode(np.full(shape, 9, np.uint8)))
    bodies.append(b"\x07" + model.encode(BASE, trained(BASE, 0.05, 1)))
    bodies.append(b"\x08" + model.encode(None, BASE))
    for number, body in enumerate(bodies):
        (folder / f"seed{number:03}").write_bytes(body)


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    if not folders:
        sys.exit("fuzz_decoders: give a folder for the corpus")
    seeds(folders[0])
    one(b"\x00\x04\xc0")  # compiles the kernels before the clock runs
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
