"""``python -m r2f.warm``: compile all kernels for this machine, once, into Numba's cache.

Set-up does it, with nothing else running, so that no service is silent for a minute while it compiles at its first message.
"""

from __future__ import annotations

import numpy as np
import torch

from accelsim import engine, zoo
from accelsim.datasets import DIGITS, load
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.lowering import lower
from r2f import inprocess
from services.codec.core import layers
from services.trainer.core.job import Job
from services.voter.core.vote import vote


def main() -> None:
    """Every layer type once, then two iterations of the loop in this process, on an untrained network."""
    engine.warm()
    data = load(DIGITS)
    torch.manual_seed(0)
    module = zoo.build("digits_cnn", data.classes).eval()
    lowered = lower(module, data.train_images[:64], data.mean, data.std, name="warm")
    rates = Rates(input=1e-3, weight=1e-3, output=1e-3)
    job = Job(session="warm", device="warm", rates=rates, iterations=2)
    # What comes over the bus is read-only, which to Numba is another type: both are needed.
    received = storage.from_bytes(storage.to_bytes(lowered))
    for network in (lowered, received):
        inprocess.retrain(network, data, job)
    tensors = [np.frombuffer(bytes(64), np.int8).reshape(1, 2, 2, 16) for _ in range(7)]
    for replicas in (3, 5, 7):
        layers.encode(tensors[0], vote(tensors[:replicas], "median"), "chained")
    layers.encode(tensors[0], tensors[1], "chained")


if __name__ == "__main__":
    main()
