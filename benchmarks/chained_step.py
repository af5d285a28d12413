"""The chained codec's step on the device's side, and its memory: three replicas of every MAC layer, and their vote.

``python -m benchmarks.chained_step NETWORK IMAGES BER THREADS`` prints the peak resident memory in MB (10^6 bytes) of
three steps, interpreter and libraries included. It imports what a device needs and no more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from accelsim.accelerators import Simulated
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Activation, Int8
from services.voter.core.vote import vote


def chained(device: Simulated, x: Int8, iteration: int) -> list[Activation]:
    """One step on the quantised input x: actual outputs of all layers; the votes are made and let go."""

    def each(index: int, replicas: Sequence[Activation], first: int) -> None:
        vote(replicas, "median")

    return device.run_chained(x, each, iteration=iteration)


def main(network: str, images: str, ber: str, threads: str) -> None:
    """Print the peak of three steps on the file's ``val_images``."""
    torch.set_num_threads(int(threads))
    device = Simulated(Rates.uniform(float(ber)))
    device.load(storage.load(network))
    with np.load(images) as data:
        x = device.engine.network.quantize_images(data["val_images"])
    for iteration in range(3):
        chained(device, x, iteration)
    # Not getrusage's: that starts from what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:])
