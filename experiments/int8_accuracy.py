"""What int8 costs: accuracy of the lowered networks against their float originals, on images held out from calibration.

``python -m experiments.int8_accuracy --shared ../shared`` prints the table of docs/networks.md. The networks are those
whose weights are at hand; calibration takes the training images, the accuracy is of the test (validation) images.
``--jpeg 95 90 80 70`` prints instead what JPEG inputs cost (docs/wire.md, "Inputs"): the same networks on the pixels that
both sides of the link decode, at each quality.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelsim.datasets import IMAGENET_MEAN, IMAGENET_STD, spread
from accelsim.lowering import lower
from experiments.common import command
from experiments.common.trained import TRAINED, float_logits, images_of, int8_logits, lowered, module_of, top
from services.codec.core import inputs

MOST = 1000
"""Images that an accuracy is taken of at most."""
HEAD = "| network | images | float top-1 / top-5 | int8 top-1 / top-5 | same top-1 | lowering, CPU time |"
JPEG_HEAD = "| network | inputs | of raw | float top-1 / top-5 | int8 top-1 / top-5 | top-1 as on lossless, float / int8 |"


def row(name: str, shared: Path, calibration: int, *, training: bool) -> str:
    """The row of one network, calibrated on the first ``calibration`` training images.

    Its accuracy is of the test images, or with ``training`` of those training images that calibration did not see.
    """
    module = module_of(name, shared)
    images, labels = images_of(name, shared, "train")
    start = time.process_time()
    network = lower(module, images[:calibration], IMAGENET_MEAN, IMAGENET_STD, name)
    seconds = time.process_time() - start
    if not training:
        images, labels = images_of(name, shared, "test")
    elif len(images) <= calibration:
        raise command.InputError(f"--train: calibration takes all {len(images)} training images of {name}; give --calibration")
    else:
        images, labels = images[calibration:], labels[calibration:]
    chosen = spread(MOST, len(images))
    images, labels = images[chosen], labels[chosen]
    exact, rough = float_logits(module, images), int8_logits(network, images)
    same = 100 * (exact.argmax(1) == rough.argmax(1)).mean()
    cells = ["{:.1f} / {:.1f}".format(*top(v, labels)) for v in (exact, rough)]
    return f"| {name} | {len(images)} | {cells[0]} | {cells[1]} | {same:.1f} % | {seconds:.1f} s |"


def jpeg_rows(name: str, shared: Path, calibration: int, qualities: Sequence[int]) -> Iterator[str]:
    """A row for lossless inputs and one for each JPEG quality, on the test images; the network is calibrated without loss."""
    module, network = module_of(name, shared), lowered(name, shared, calibration)
    images, labels = images_of(name, shared, "test")
    right = float_logits(module, images).argmax(1), int8_logits(network, images).argmax(1)
    for quality in (None, *qualities):
        body, seen = (inputs.encode(images), images) if quality is None else inputs.lossy(images, quality)
        logits = float_logits(module, seen), int8_logits(network, seen)
        cells = ["{:.1f} / {:.1f}".format(*top(v, labels)) for v in logits]
        answers = logits[0].argmax(1), logits[1].argmax(1)
        same = [f"{100 * (v == before).mean():.1f}" for v, before in zip(answers, right, strict=True)]
        kind = "lossless" if quality is None else f"JPEG {quality}"
        yield f"| {name} | {kind} | {100 * len(body) / images.nbytes:.1f} % | {cells[0]} | {cells[1]} | {' / '.join(same)} |"


def main() -> None:
    """Prints the table."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_networks(parser, list(TRAINED))
    parser.add_argument("--calibration", type=command.positive, default=128, help="training images to calibrate on")
    parser.add_argument("--train", action="store_true", help="measure on training images behind those of calibration")
    parser.add_argument("--jpeg", nargs="+", type=command.quality, metavar="Q", help="instead: accuracy on JPEG inputs")
    given = parser.parse_args()
    head = JPEG_HEAD if given.jpeg else HEAD
    print(head + "\n" + "|---" * (head.count("|") - 1) + "|")
    for name in given.network:
        if given.jpeg:
            for line in jpeg_rows(name, given.shared, given.calibration, given.jpeg):
                print(line, flush=True)
        else:
            print(row(name, given.shared, given.calibration, training=given.train), flush=True)


if __name__ == "__main__":
    command.run(main)
