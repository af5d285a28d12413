"""What an accelerator that rounds otherwise costs on the link: ONNX Runtime and one that rounds down against our own engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from accelsim import datasets, zoo
from accelsim.accelerators import Factory, Simulated, build
from accelsim.datasets import Dataset
from accelsim.faults import Rates
from accelsim.int8.network import Conv, Network
from accelsim.lowering import lower
from experiments.common import command
from r2f import float_training, inprocess
from services.trainer.core.job import Job
from services.trainer.core.task import PAPER, Sgd

BATCH = 16
ITERATIONS = 4


class Truncating(Simulated):
    """A device that rounds down: all biases half a step of the output lower, which comes to the same but for rounding them."""

    def load(self, network: Network) -> None:
        """See ``accelsim.accelerators.Accelerator``."""
        layers = [
            replace(layer, bias=layer.bias - np.rint(0.5 / layer.multiplier).astype(np.int32))
            if isinstance(layer, Conv)
            else layer
            for layer in network.layers
        ]
        super().load(replace(network, layers=tuple(layers)))


DEVICES: dict[str, Factory] = {
    "simulated": build("simulated"),
    "onnxruntime": build("onnxruntime"),
    "rounding down": lambda rates, seed, device: Truncating(rates, seed, device),
}


def digits() -> tuple[Network, Dataset]:
    """The digits' network, trained."""
    data = datasets.load(datasets.DIGITS)
    module = float_training.train(lambda: zoo.build("digits_cnn", data.classes), data, seed=0)
    return lower(module, data.train_images[:256], data.mean, data.std, "digits_cnn", classifier=True), data


def random(name: str) -> tuple[Network, Dataset]:
    """A network of the zoo with random weights, on smooth random images of 32x32."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32] / 32
    waves = generator.uniform(1, 9, (64, 3, 2))
    smooth = np.stack([[np.sin(a * x + b * y) for a, b in image] for image in waves]).transpose(0, 2, 3, 1)
    images = np.clip(128 + 90 * smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    torch.manual_seed(0)
    network = lower(zoo.build(name, 10), images, (0.5,) * 3, (0.25,) * 3, name, classifier=True)
    labels = generator.integers(0, 10, len(images))
    data = Dataset(
        name="random", train_images=images, train_labels=labels, test_images=images, test_labels=labels, mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )  # fmt: skip
    return network, data


def measured(network: Network, data: Dataset) -> list[dict[str, float | str]]:
    """One row an accelerator: bytes of the layers' outputs an iteration, of what they are raw."""
    rows: list[dict[str, float | str]] = []
    for accelerator, factory in DEVICES.items():
        job = Job(
            session="rounding", device="d", rates=Rates(), iterations=ITERATIONS, batch=BATCH, sgd=Sgd(rate=1e-3), recipe=PAPER,
            labels="device", evaluation_seeds=(1,), evaluation_samples=1, evaluation_batch=1,
        )  # fmt: skip
        found = inprocess.retrain(network, data, job, accelerator=factory).iterations
        rows.append(
            {
                "network": network.name, "accelerator": accelerator, "raw": found[-1].elements,
                "layers": float(np.mean([one.layer_bytes + one.repair_bytes for one in found])),
                "wrong": sum(one.mismatched for one in found),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Bytes of intermediate outputs an iteration, without faults: accelerators that round as we do, and otherwise."""
    parser = command.parser(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    given = parser.parse_args()
    rows = [row for network, data in (digits(), random("resnet20"), random("mobilenet_v2")) for row in measured(network, data)]
    for row in rows:
        raw, layers = float(row["raw"]), float(row["layers"])
        print(f"{row['network']:14} {row['accelerator']:14} {raw:12,.0f} B raw {layers:10,.0f} B sent"
              f" {100 * layers / raw:8.3f} %  {row['wrong']} elements wrong")  # fmt: skip
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
