"""Fault-aware retraining of one chip (FAP+T): the weights that it cannot hold stay 0, the others learn to do without them.

A chip's amount of retraining is a number of iterations. The learning rate, the order of the images and the running average that
is deployed do not depend on the amount, only on the largest one that the job allows. So what a chip has after 40 iterations is
the same model whether it then goes on or not, and one course shows what any amount would have given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from accelsim.accelerators import Simulated
from accelsim.datasets import Dataset
from accelsim.engine import Engine
from accelsim.faults.pruning import Kept
from accelsim.int8.network import Network
from r2f import prepare
from r2f.settings import Settings
from services.trainer.core import recipe, viewing
from services.trainer.core.job import Job
from services.trainer.core.step import Learner, Received, averaged, correct, holding, start, step
from services.views import seen


def networks(network: Network, kept: Kept, data: Dataset, job: Job, stops: Sequence[int]) -> Iterator[tuple[int, Network]]:
    """The chip's network behind so many iterations, for each of ``stops``, which ascend from 0 or more to the job's iterations.

    ``network`` is the healthy one, which teaches where the job's labels are a teacher's; ``kept`` are the weights that the
    chip can hold. Soft errors at the job's rates come on top. The server knows the map, so both sides run the same weights
    and the forward pass needs no link. Nothing is computed before it is asked for.
    Raises TrainingDiverged, and ValueError where job, stops and data do not fit together.
    """
    plan = recipe.plan(job, len(data.train_images))
    if list(stops) != sorted(set(stops)) or (stops and not 0 <= stops[0] <= stops[-1] <= plan.iterations):
        raise ValueError(f"stops {list(stops)}: expected ascending numbers from 0 to the job's {plan.iterations} iterations")
    learner = Learner(plan, Engine(network), holding(start(job, network), kept), kept=kept)
    own = data.train_labels if job.labels == "server" else None
    due = iter(stops)
    stop = next(due, None)
    while stop is not None:
        done = learner.state.iteration
        if done == stop:
            yield stop, averaged(learner)
            stop = next(due, None)
            continue
        present = learner.state.network
        device = Simulated(plan.rates(done), job.seed, job.device)
        device.load(present)
        samples = plan.samples(done)
        images = seen(data.train_images[samples], plan.view(done))
        outputs = device.run(present.quantize_images(images), iteration=done)
        received = Received(
            images,
            {index: outputs[index] for index, _ in network.convs()},
            data.train_labels[samples],
            None if own is None else own[samples],
        )
        if done < plan.corrections:
            correct(learner, device.engine, received)
        else:
            step(learner, device.engine, received, None)


def job_of(settings: Settings, network: Network, data: Dataset, largest: int) -> Job:
    """How every chip of a table or a fleet is retrained, as far as ``largest`` iterations, by settings of ``r2f retrain``.

    The learning rate stays where it is behind its warm-up, and nothing is kept for deciding what is deployed: that is
    what the amount is for. Raises ValueError where a setting does not fit that.
    """
    if settings.method != "retrain":
        raise ValueError(f"--method {settings.method}: a chip's amount of retraining is of --method retrain")
    fixed = msgspec.structs.replace(settings.recipe, schedule="constant", selection=0)
    whole = msgspec.structs.replace(settings, recipe=fixed, iterations=largest)
    job = prepare.job_of(whole, "chip", data=data.digest())
    return viewing.decided(job, network, data.train_images[prepare.calibration(data)])
