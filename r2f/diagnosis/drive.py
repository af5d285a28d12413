"""Drives a diagnosis on a device, in this process or over the bus: runs what ``find`` asks for, and votes on repetitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from accelsim.accelerators import Factory
from accelsim.faults import Rates
from accelsim.int8.network import Activation
from accelsim.timing import Array
from r2f.diagnosis.find import Found, Progress, find
from r2f.diagnosis.probes import Probe
from r2f.inprocess import Clock, Device, Link
from services.codec.core import inputs
from services.codec.core.device_end import DeviceEnd
from services.codec.core.server_end import ServerEnd
from services.scheme import Scheme
from services.trainer.core.course import Batch
from services.trainer.table1 import Mode, Server

SCHEME: Final = Scheme(protected=(0,))
"""The device votes over three executions of a probe."""
SURE: Final = 1
UNSURE: Final = 3
"""Answers that a fault must explain, without soft errors and with."""


class Diagnosed(NamedTuple):
    """What was found, and the bytes of bodies that crossed the link for it."""

    found: Found
    down: int
    """Networks and vectors."""
    up: int
    """Vectors once more, answers and repairs."""


def repeats(rates: Rates) -> int:
    """How often each probe is run: several times where soft errors come on top."""
    return 1 if rates == Rates() else 5


def voted(runs: Sequence[Activation]) -> Activation:
    """What most of the runs of a probe say, element by element: the commonest value, the median where none is commoner."""
    if len(runs) == 1:
        return runs[0]
    stacked = np.sort(np.stack(runs), axis=0)
    # In sorted runs, a value that more than half of them have is in the middle.
    middle: Activation = stacked[len(runs) // 2]
    agree = (stacked[:, None] == stacked[None]).sum(axis=0)
    commonest: npt.NDArray[Any] = np.take_along_axis(stacked, agree.argmax(axis=0)[None], axis=0)[0]
    alone = agree.max(axis=0) == 1
    result: Activation = np.where(alone, middle, commonest)
    return result


def in_process(
    factory: Factory, array: Array, rates: Rates, *, seed: int = 1, device: str = "device", repeat: int | None = None
) -> Diagnosed:
    """Diagnose a device in this process; what crosses the link is coded as in a run, so that its bytes are counted.

    ``repeat`` runs of each probe are voted on, as many as the rates ask for where it is None.
    """
    running = Device(SCHEME, device, factory, "auto")
    link = Link(SCHEME, DeviceEnd("auto"), ServerEnd("auto"))
    count = repeats(rates) if repeat is None else repeat
    steps = find(array, seed=seed, least=SURE if count == 1 else UNSURE)
    outputs: Activation | None = None
    version = iteration = down = up = 0
    while True:
        try:
            asked = next(steps) if outputs is None else steps.send(outputs)
        except StopIteration as end:
            return Diagnosed(end.value, down, up)
        version += 1
        network, sent = link.deploy(version, asked.network)
        down += sent + len(inputs.encode(asked.images))
        running.load(network, rates, seed)
        runs = []
        for _ in range(count):
            of = Batch(iteration, np.arange(len(asked.images)), rates, None)
            crossed = link.batch(running, asked.images, of, Clock())
            iteration += 1
            up += crossed.input_bytes + crossed.layer_bytes + crossed.repair_bytes
            runs.append(crossed.outputs[0])
        outputs = voted(runs)


async def over_the_bus(
    server: Server,
    device: str,
    array: Array,
    rates: Rates,
    *,
    seed: int = 1,
    repeat: int | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Found:
    """Diagnose a device over the bus, in a session of its own, ``watch`` being told of every round.

    Raises DeviceError as ``Server`` does.
    """
    count = repeats(rates) if repeat is None else repeat
    await server.set_mode(device, Mode.TRAINING, rates=rates, seed=seed, scheme=SCHEME)
    steps = find(array, seed=seed, least=SURE if count == 1 else UNSURE, watch=watch)
    outputs: Activation | None = None
    iteration = 0
    while True:
        try:
            asked: Probe = next(steps) if outputs is None else steps.send(outputs)
        except StopIteration as end:
            found: Found = end.value
            return found
        await server.deploy_model(device, asked.network, wait=False)
        images, runs = inputs.encode(asked.images), []
        for _ in range(count):
            data = await server.get_data(
                device, iteration=iteration, split="train", samples=range(len(asked.images)), images=images
            )
            iteration += 1
            runs.append(data.activations[0].copy())
        outputs = voted(runs)
