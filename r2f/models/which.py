"""Which model is meant: a run's, before or after retraining, or a file of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from accelsim.int8 import storage
from accelsim.int8.network import Network
from r2f import folders, prepare, run
from r2f import settings as settings_file
from r2f.protection.applied import protected
from r2f.settings import Settings
from services.trainer.core import fleet as fleets
from services.trainer.core import job as jobs
from services.trainer.core import result
from services.trainer.core.job import Job

Which = Literal["after", "before", "plain"]
"""Retrained, from before retraining, or in the paper's arithmetic (``--baseline``)."""
FILES: dict[Which, str] = {"after": result.RETRAINED, "before": jobs.NETWORK, "plain": jobs.PLAIN}


class Model(NamedTuple):
    """A model and where it comes from."""

    network: Network
    source: Path
    """The file."""
    run: Path | None
    """The run's folder, if it is a run's."""


def model(source: Path, which: Which = "after") -> Model:
    """The model of a run's folder, or the one in a ``.safetensors`` file of ours, of which there is no ``which``.

    Raises ValueError that names what is missing and what to do.
    """
    if source.is_file():
        return Model(_load(source), source, None)
    if not source.exists():
        raise ValueError(f"{source}: no such run folder or file; r2f runs lists runs")
    fleet = fleets.read(source)
    if fleet is not None and fleet.sharing == "own":
        device = fleet.devices[0]
        raise ValueError(f"{source}: each of its {len(fleet.devices)} devices has a model of its own; give {source / device}")
    run.read_settings(source)
    file = source / FILES[which]
    if not file.exists():
        state = folders.look(source).state
        if which == "after" and state != "done":
            raise ValueError(
                f"{source}: nothing is retrained yet, the run is {state}; go on with r2f retrain --resume {source}, "
                "or take the model from before with --which before"
            )
        hint = "; runs have it with --baseline" if which == "plain" else ""
        raise ValueError(f"{file}: is missing{hint}")
    return Model(_load(file), file, source)


def _load(file: Path) -> Network:
    try:
        return storage.load(file)
    except ValueError as error:
        raise ValueError(
            f"{error}; expected an int8 network of R2F, such as a run's {result.RETRAINED}, not a float checkpoint"
        ) from error


def settings_of(found: Model, given: Mapping[str, Any]) -> Settings:
    """The run's settings, or the defaults, with those that are given in their place. Raises SettingsError."""
    base = None if found.run is None else run.read_settings(found.run)
    settings = settings_file.parse(given, base)
    if settings.data.image_size is None and Path(settings.data.source).is_dir():  # the network says it
        data = msgspec.structs.replace(settings.data, image_size=found.network.input_shape)
        settings = msgspec.structs.replace(settings, data=data)
    return settings


def job_of(found: Model, settings: Settings) -> Job:
    """The job that says how a device with these settings is evaluated: a run's own evaluations are as its report has them."""
    planned = found.network if found.run is None else _load(found.run / jobs.NETWORK)  # a run's plan is for what it began with
    job = prepare.job_of(protected(settings, planned), "evaluate")
    if found.run is None:
        return job
    own = jobs.read(found.run)
    job = msgspec.structs.replace(job, device=own.device, evaluation_batch=own.evaluation_batch)
    if settings.metric is not None:
        return job
    return msgspec.structs.replace(job, metric=own.metric, loss=own.loss, output_range=own.output_range)
