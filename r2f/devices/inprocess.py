"""One model for several devices in one process: the peer of the pipeline's ``--fleet common``, with nobody late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from accelsim.accelerators import Factory, build
from accelsim.datasets import Dataset
from accelsim.int8.network import Network
from r2f.inprocess import Loop
from services.trainer.core import common
from services.trainer.core.course import Answers, Batch, Deploy, Learnt, Outcome, Steps
from services.trainer.core.course import Reply as OfOne
from services.trainer.core.job import Job, check
from services.trainer.core.parts import Replaying
from services.trainer.core.selection import Selection
from services.trainer.core.step import start


class Common(NamedTuple):
    """The network for all devices, how it was chosen, and the loss of each iteration."""

    network: Network
    selection: Selection | None
    loss: list[float]


def retrain(
    network: Network,
    data: Mapping[str, Dataset],
    job: Job,
    *,
    path: str = "auto",
    accelerator: Factory | None = None,
    replaying: Replaying | None = None,
) -> Common:
    """Retrain one network on several faulty devices, by name, each with its data, as ``r2f retrain --fleet common`` does.

    ``job.device`` is of no account. Raises TrainingDiverged, and ValueError where job, network and data do not fit together.
    """
    check(job, network)
    plans = {device: common.member(job, device, len(data[device].train_images)) for device in sorted(data)}
    leading = common.leading(plans)
    plans = {device: common.member(job, device, len(data[device].train_images), leading.iterations) for device in plans}
    factory = accelerator or build(f"simulated:{path}")
    loops = {device: Loop(plan.job, data[device], factory, path) for device, plan in plans.items()}
    steps = common.course(plans[leading.job.device], network, start(job, network), path, None, [], replaying)
    losses: list[float] = []
    reply: common.Reply = None
    while True:
        try:
            command = steps.send(reply)
        except StopIteration as end:
            outcome: Outcome = end.value
            return Common(outcome.network, outcome.selection, losses)
        reply = None
        match command:
            case Deploy():
                for loop in loops.values():
                    loop.carry(command)
            case common.Each():
                reply = {device: _driven(command.steps(plans[device]), loop) for device, loop in loops.items()}
            case Learnt():
                losses.append(command.made.loss)
            case common.Tried():
                pass


def _driven(steps: Steps[object], loop: Loop) -> object:
    """What a device's steps end with."""
    reply: OfOne = None
    while True:
        try:
            command = steps.send(reply)
        except StopIteration as end:
            return end.value
        assert isinstance(command, Deploy | Batch | Answers)
        reply = loop.carry(command)
