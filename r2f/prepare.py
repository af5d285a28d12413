"""Making a run's folder: data checked, float network trained or loaded, lowered to int8, job written."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from torch import nn

from accelsim import accelerators, datasets, faults, zoo
from accelsim.datasets import Dataset, Int64, spread
from accelsim.faults import Rates, chip
from accelsim.faults.permanent import FaultMap
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from accelsim.named import looking_in
from accelsim.timing import Array
from accelsim.timing.scalesim import read_config
from broker.launch import find_mosquitto
from broker.link import profile
from r2f import float_training, inprocess
from r2f import settings as settings_file
from r2f.devices.dividing import divide
from r2f.display import Display
from r2f.memory import MB, Shares, live_bytes, shares
from r2f.patience import silence_s
from r2f.protection import plan as plans
from r2f.protection.applied import protected, suited
from r2f.settings import DEMO_NETWORK, DEVICES_OWN, Settings, SettingsError
from services.bus import BusError
from services.bus.address import broker_address
from services.passwords import hidden
from services.trainer.core import job as jobs
from services.trainer.core import objective, viewing
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.fleet import Fleet
from services.trainer.core.job import Job
from services.trainer.core.task import Task

PREPARED = "prepared.json"
EVALUATION_BATCH = 128
CALIBRATION = 256
CONNECT_S = 3.0
PARTS: Final = {"classes": 0.3, "pixels": 0.1}
"""Of the error rates that a network whose output is an image is quantised for, by what that holds. Quantised for all of them it
loses more without faults than it keeps with them, and learns less (docs/generative.md)."""


class Prepared(msgspec.Struct, kw_only=True):
    """``prepared.json``: what preparing found out."""

    float_accuracy: Evaluation
    """Of the float network on the held-out images of the evaluations."""
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """The normalisation that device and server use."""
    memory: Shares
    """Of the device."""
    chip: str = ""
    """The permanent faults that the device is given, in words; empty where there are none."""
    class_names: tuple[str, ...] | None = None
    """Of class k at place k, where the data has names."""
    sound: Evaluation | None = None
    """Of the int8 network before the run on those images, on an array without faults; None where ``chip`` names none."""


def check(settings: Settings) -> None:
    """Everything that can be said before data and network are looked at.

    Raises SettingsError naming the option, ValueError of the module that knows better.
    """
    if settings.scheme.jpeg and settings.scheme.float_inputs:
        raise SettingsError("--float-inputs and --jpeg exclude one another: give one")
    if settings.scheme.codec == "golden" and (settings.scheme.protected or settings.plan):
        raise SettingsError("--protect: codec golden protects no layers; take --codec chained or direct")
    if settings.plan is not None:
        if settings.scheme != settings.scheme.bare:
            raise SettingsError(f"--protect {settings.plan}: a plan says it all; leave out layers, --tmr and --uncertain")
        plans.named(settings.plan)
        if settings.quantised_for is not None:
            raise SettingsError(
                f"--protect {settings.plan}: a plan says what to quantise for; leave --quantise-for out, of a --config file too"
            )
    if settings.ranks > settings.recipe.chunks:
        raise SettingsError(
            f"--ranks {settings.ranks}: a batch is replayed in {settings.recipe.chunks} chunks, so some would idle; give "
            f"--chunks {settings.ranks} or more"
        )
    if settings.ranks > 1 and not settings.trainer:
        raise SettingsError(f"--ranks {settings.ranks}: the trainer is started elsewhere (--no-trainer), and its ranks with it")
    if not settings.data.source:
        raise SettingsError(
            "--data is empty: give 'digits', 'shapes', 'crops2x', latents:Z, an .npz file or a folder of images"
        )
    if settings.link is not None:
        profile(settings.link)
    if settings.live and settings.link is None:
        raise SettingsError("--live needs --link: lora, 802.15.4g, hspa or lte")
    if settings.live and settings.broker is None and (settings.embedded or find_mosquitto() is None):
        raise SettingsError("--live joins two brokers by a bridge, which only Mosquitto can: apt-get install mosquitto")
    check_files(settings)
    suited(settings)
    worn = permanent(settings)
    known(settings)
    with looking_in(settings.modules):
        accelerators.build(settings.accelerator, faults.build(settings.fault_model), worn)
    if settings.network not in zoo.NETWORKS and ":" not in settings.network:
        zoo.build(settings.network)  # raises, naming those there are
    if settings.weights is None and settings.network not in zoo.TRAINED_HERE:
        raise SettingsError(f"network {settings.network}: give its trained weights with --weights FILE")


def check_files(settings: Settings) -> None:
    """Raises SettingsError where a file or a folder that a setting names is not there."""
    plan = None if settings.plan is None else str(plans.named(settings.plan)[0])
    known_map = None if settings.known_map == DEVICES_OWN else settings.known_map
    files = {
        "weights": settings.weights, "classes": settings.data.classes, "array": settings.array, "protect": plan,
        "fault-map": settings.fault_map, "known-map": known_map,
    }  # fmt: skip
    for option, path in files.items():
        if path is not None and not Path(path).is_file():
            what = "that is a folder, not a file" if Path(path).is_dir() else "no such file"
            raise SettingsError(f"--{option} {path}: {what}")
    if settings.modules is not None and not Path(settings.modules).is_dir():
        raise SettingsError(f"--modules {settings.modules}: no such folder")


def array_of(settings: Settings) -> Array:
    """The array of the device. Raises ValueError naming the file."""
    return Array() if settings.array is None else read_config(Path(settings.array))


def permanent(settings: Settings) -> FaultMap | None:
    """The permanent faults that the device is given. Raises SettingsError, and ValueError naming the file and the field."""
    if settings.fault_map is not None and settings.random_faults is not None:
        raise SettingsError("--fault-map and --random-faults exclude one another: give one")
    return chip.of(array_of(settings), settings.fault_map, settings.random_faults, settings.chip_seed)


def chip_words(settings: Settings) -> str:
    """What is said of the device's permanent faults in a report; raises what ``permanent`` and ``known`` do."""
    worn, both = permanent(settings), known(settings)
    if worn is None:
        return ""
    count = len({(fault.row, fault.column) for fault in worn.faults})
    named = f"chip {worn.name}" if worn.name else "chip"
    told = "nobody knows of them" if both is None else "both ends of the link know them"
    if both is not None and chip.digest(both) != chip.digest(worn):
        told = f"both ends of the link take them for map {chip.digest(both)}"
    elements = worn.array.rows * worn.array.columns
    return f"{named}: {count} of {elements} elements faulty (map {chip.digest(worn)}), {told}"


def known(settings: Settings) -> FaultMap | None:
    """The permanent faults that both sides know of; raises what ``permanent`` does."""
    if settings.known_map is None:
        return None
    if settings.known_map != DEVICES_OWN:
        return chip.read(settings.known_map, array_of(settings))
    own = permanent(settings)
    if own is None:
        raise SettingsError("--known-map device: the device is given none; give --fault-map or --random-faults too, or a file")
    return own


def reach(url: str) -> None:
    """Raises SettingsError where nothing listens at a broker's address: better now than after minutes of preparing."""
    try:
        address = broker_address(url)
    except (BusError, ValueError) as error:
        raise SettingsError(f"--broker {hidden(url)}: {error}") from None
    try:
        socket.create_connection((address.host, address.port), CONNECT_S).close()
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"--broker {address.shown}: no broker answers at {address.host}:{address.port}: {error}") from None


def prepare(settings: Settings, folder: Path, say: Display, fleet: Fleet | None = None) -> None:
    """Fill the run's folder, which is empty or not there yet; ``fleet`` are its devices, where they are several.

    Raises ValueError (SettingsError, DataError, LoweringError) that names what does not fit.
    """
    if (folder / settings_file.FILE).exists():
        raise SettingsError(f"{folder}: a run is there already")
    check(settings)
    data = datasets.open(settings.data)
    for note in data.notes:
        say.note(note)
    if settings.launch and settings.batch > len(data.train_images):
        raise SettingsError(f"--batch {settings.batch}: {data.name} has {len(data.train_images)} training images")
    module = float_module(settings, data, say)
    asked, settings = settings, suited(settings)
    if settings.plan is not None and settings.quantised_for is not None:
        say.note(f"the plan has it quantised for {100 * settings.quantised_for:g} % of the error rates")
    with say.step("quantising to int8"):
        network = lowered(settings, data, module)
        plain = lowered(msgspec.structs.replace(settings, activations="signed"), data, module) if settings.baseline else None
    data.check(network, images=True)
    settings = protected(settings, network)
    memory = shares(settings.device_memory_mb, network, settings.batch, data.train_images.nbytes + data.test_images.nbytes)
    at_once = max(1, min(EVALUATION_BATCH, memory.agent * MB // live_bytes(network)))
    job = settled(job_of(settings, folder.name, at_once, data.digest()), network, data)
    job = msgspec.structs.replace(job, patience_s=silence_s(settings, network))
    with say.step("accuracy of the float network"):
        chosen = spread(settings.evaluation_samples, len(data.test_images))
        truth = inprocess.reference(job, network, data, chosen)
        accuracy = float_training.evaluate(module, data.test_images[chosen], truth, data)
    try:
        jobs.check(job, network)
    except ValueError as error:
        raise SettingsError(f"--protect: {str(error).removeprefix('job: ')}; see r2f layers") from None
    folder.mkdir(parents=True, exist_ok=True)
    storage.save(network, folder / jobs.NETWORK)
    if plain is not None:
        storage.save(plain, folder / jobs.PLAIN)
    words = chip_words(settings)
    healthy = None
    if words:
        with say.step("accuracy without the chip's faults"):
            healthy = inprocess.evaluate(
                network, data.test_images[chosen], truth, Rates(), [0], scheme=settings.scheme, batch=at_once
            )
    prepared = Prepared(
        float_accuracy=accuracy,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        memory=memory,
        chip=words,
        class_names=data.class_names,
        sound=healthy,
    )
    (folder / PREPARED).write_bytes(msgspec.json.encode(prepared))
    if job.labels == "server":
        own = data.train_labels if data.train_targets is None else data.train_targets
        np.save(folder / jobs.OWN["labels" if data.train_targets is None else "targets"], own)
    if job.against == "targets" and data.test_targets is not None:
        np.save(folder / jobs.TARGETS, data.test_targets)
    jobs.write(folder, job)
    if fleet is not None:
        divide(asked, folder, fleet, (jobs.NETWORK, jobs.PLAIN, PREPARED, *jobs.OWN.values(), jobs.TARGETS))
    settings_file.write(folder, asked)  # last: a trainer that waits takes a folder that has it


def lowered(settings: Settings, data: Dataset, module: nn.Module, share: float | None = None) -> Network:
    """The int8 network that a run with these settings starts from, quantised for a share of their error rates.

    ``share`` None is the settings'. Where outputs are images it is for ``PARTS`` of that.

    Raises LoweringError.
    """
    images = data.train_images[calibration(data)]
    image = objective.holds(settings, data)
    share = settings.quantised_for if share is None else share
    share = 1.0 if share is None else share
    if image is not None:
        share *= PARTS["classes" if image == "classes" else "pixels"]
    return lower(
        module,
        images,
        data.mean,
        data.std,
        name=settings.network,
        classifier=None,
        activations=settings.activations,
        deconvolution=settings.deconvolution,
        image=image,
        ber=share * rate_of(settings.rates),
    )


def settled(job: Job, network: Network, data: Dataset) -> Job:
    """The job with all that it leaves to the network and its data. Raises SettingsError that names the option."""
    try:
        decided = objective.settled(job, network, data)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return viewing.decided(decided, network, data.train_images[calibration(data)])


def rate_of(rates: Rates) -> float:
    """The one bit error rate that a network is quantised for: the mean of those of inputs, weights and outputs."""
    return (rates.input + rates.weight + rates.output) / 3


def calibration(data: Dataset) -> Int64:
    """Numbers of the training images by which networks are quantised."""
    return spread(CALIBRATION, len(data.train_images))


def read(folder: Path) -> Prepared:
    """What preparing a folder found out. Raises ValueError that names the file."""
    path = folder / PREPARED
    try:
        return msgspec.json.decode(path.read_bytes(), type=Prepared)
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path}: {error}; start the run anew") from error


def float_module(settings: Settings, data: Dataset, say: Display) -> nn.Module:
    """The float network in eval mode: those of ``zoo.TRAINED_HERE`` are trained here, others come with their weights."""
    if settings.weights is not None:
        # A class list says how many classes a network has, else its checkpoint or its function does.
        classes = None if settings.data.classes is None else data.classes
        with looking_in(settings.modules):
            module = zoo.load(settings.network, Path(settings.weights), classes=classes, say=say.note)
        check_output(settings, data, module)
        return module
    if settings.network != DEMO_NETWORK:
        meant = zoo.TRAINED_HERE[settings.network]
        wants = "masks" if meant == "shapes" else "images"
        if data.kind != wants:
            raise SettingsError(
                f"{data.name}: network {settings.network} is trained here on {wants} as targets, as --data {meant} has "
                f"them, and this data has {data.kind}; or give trained weights with --weights"
            )
        check_untrained(settings, data)
        with say.step("training the float network"):
            return float_training.from_nothing(settings.network, data, settings.seed)
    expected = datasets.load(datasets.DIGITS).shape
    if data.shape != expected:
        raise SettingsError(
            f"{data.name}: images are {datasets.dataset.by(data.shape)}, and {DEMO_NETWORK}, the network where none is named, "
            f"takes {datasets.dataset.by(expected)}; name yours with --network and --weights"
        )
    check_untrained(settings, data)
    with say.step("training the float network"):
        return float_training.from_nothing(DEMO_NETWORK, data, settings.seed)


def check_untrained(settings: Settings, data: Dataset) -> None:
    """``check_output`` of a network that is to be trained here, before it is. Raises SettingsError that names the option."""
    with torch.random.fork_rng(devices=[]):
        check_output(settings, data, zoo.build(settings.network, data.classes))


def check_output(settings: Settings, data: Dataset, module: nn.Module) -> None:
    """Raises SettingsError naming the option where metric or loss are not for what a float module gives for an image.

    Of outputs that are neither a vector nor an image nothing is said, nor of a module that does not take these images:
    quantising comes next, and says what it is that does not fit.
    """
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            outputs = module(float_training.normalised(data.train_images[:1], data))
    except RuntimeError:
        return
    finally:
        module.train(was_training)
    if not isinstance(outputs, torch.Tensor) or outputs.dim() not in (2, 4):
        return
    channels, height, width = (*outputs.shape[1:], 1, 1)[:3]
    try:
        objective.fitted(settings, settings.network, (height, width, channels), data)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def job_of(settings: Settings, session: str, evaluation_batch: int = EVALUATION_BATCH, data: str = "") -> Job:
    """The trainer's half of the settings. ``data`` is ``Dataset.digest``."""
    uplink = 0.0 if settings.link is None else profile(settings.link).up
    task = {name: getattr(settings, name) for name in Task.__struct_fields__}
    if settings.labels == "auto" and (settings.sharing == "common" or not settings.launch):
        task["labels"] = "teacher-soft"  # Devices that are not started here have samples of their own.
    task["scheme"] = msgspec.structs.replace(settings.scheme, uplink_bits_per_s=uplink)
    map_known = known(settings)
    return Job(
        **task,
        known=b"" if map_known is None else chip.packed(map_known),
        session=session,
        device=settings.device,
        evaluation_seeds=tuple(settings.seed + 1001 + i for i in range(settings.evaluation_seeds)),
        evaluation_batch=evaluation_batch,
        data=data,
    )


def network_of(folder: Path) -> Network:
    """The int8 network that a run starts from."""
    return storage.load(folder / jobs.NETWORK)
