"""``python -m r2f.warm``: compile all kernels for this machine, once, into Numba's cache.

Set-up does it, with nothing else running, so that no service is silent for a minute while it compiles at its first message.
"""

from __future__ import annotations

import torch

from accelsim import engine, zoo
from accelsim.lowering import lower
from r2f import inprocess
from r2f.data import DIGITS, load
from services.bus.messages import FaultRates
from services.trainer.job import Job


def main() -> None:
    """Every layer type once, then two iterations of the loop in this process, on an untrained network."""
    engine.warm()
    data = load(DIGITS)
    torch.manual_seed(0)
    module = zoo.build("digits_cnn", data.classes).eval()
    network = lower(module, data.train_images[:64], data.mean, data.std, name="warm")
    rates = FaultRates(input=1e-3, weight=1e-3, output=1e-3)
    inprocess.retrain(network, data, Job(session="warm", device="warm", rates=rates, iterations=2))


if __name__ == "__main__":
    main()
