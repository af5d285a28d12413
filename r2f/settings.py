"""Everything that a user can set, described once: options of ``r2f retrain``, keys of ``run.toml``, arguments in Python.

A setting has one name in all three places (``eval-samples``, as a Python argument ``eval_samples``). Its type, bounds and
default are those of a struct's field; ``OPTIONS`` says which field it is and what it does.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

import msgspec
import tomli_w
from msgspec import Meta

from accelsim.datasets import DIGITS, Spec, is_made
from accelsim.faults import Rates
from accelsim.files import write_whole
from accelsim.int8.network import Activations, Way
from services import devices
from services.trainer.core.task import PAPER, Sgd, Sharing, Task, said

FILE = "run.toml"
DEMO_NETWORK = "digits_cnn"
DEVICES_OWN = "device"
"""``known-map``: the chip that the device is given."""
Devices = Annotated[str, Meta(min_length=1, max_length=1 << 18)]


External = Annotated[tuple[Literal["agent", "voter", "codec-device"], ...], Meta(max_length=3)]


RecipeName = Literal["ours", "paper"]
"""Of the recipes that ``--recipe`` takes; what a run was given is in its own settings, one by one."""
PLAIN: dict[str, Any] = {"recipe": PAPER, "labels": "device", "iterations": 100, "sgd": Sgd(rate=1e-3, clip=5.0, rule="sgd")}
"""The paper's recipe as fields of a Task."""


class SettingsError(ValueError):
    """A setting that means nothing; the message names the option, the value and what it should be."""


class Settings(Task, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the user asked for: the trainer's task, and what it is done with."""

    network: str = DEMO_NETWORK
    weights: str | None = None
    modules: str | None = None
    """Folder in which a ``package.module:function`` is looked for; None takes the current one."""
    data: Spec = Spec()
    plan: str | None = None
    """What is protected in place of what the scheme says: ``FILE.json``, or ``FILE.json@50%`` for one of its budgets."""
    evaluation_seeds: Annotated[int, Meta(ge=1, le=1000)] = 5
    """Number of fault seeds of each evaluation."""
    activations: Activations = "auto"
    quantised_for: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Share of the error rates that the network is quantised for; None is what the plan says, or all of them."""
    deconvolution: Way = "auto"
    """How transposed convolutions run as ordinary ones."""
    baseline: bool = False
    """Measure what the paper's arithmetic would come to as well."""
    link: str | None = None
    live: bool = False
    """Make the link real: two brokers joined by a bridge through a shaping proxy."""
    device: Devices = "edge-0"
    """One; several with commas; or a pattern of those that are announced on the broker."""
    sharing: Sharing = "own"
    wait_s: Annotated[float, Meta(gt=0, le=86400)] = 30.0
    """With one model for several devices: how much longer than half of them another may take."""
    hosts: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Of several devices that are started here: processes of each of their services. None takes one a core."""
    ranks: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Processes that share the trainer's replay."""
    codecs: Annotated[int, Meta(ge=0, le=1024)] | None = None
    """Of several devices: processes of the codec's server side. None takes one a core, and none where nothing is launched."""
    device_memory_mb: Annotated[int, Meta(ge=1, le=1 << 20)] = 1024
    accelerator: str = "simulated"
    fault_model: str = "soft"
    fault_map: str | None = None
    """A chip file: the permanent faults of the device's array."""
    random_faults: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Share of its processing elements that are faulty, on a random chip in place of a chip file."""
    chip_seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    known_map: str | None = None
    """What both sides know of the permanent faults: a chip file, or ``device`` for those that the device is given."""
    array: str | None = None
    broker: str | None = None
    """A broker that is there already, without its password; None starts one."""
    launch: bool = True
    """Start the device's and the codec's services; False where they run elsewhere."""
    external: External = ()
    """Of the services that are started: those of the device that are not, for programs of somebody else do their work."""
    trainer: bool = True
    """Start the trainer; False where one waits for runs below the folder that this run's is in."""
    embedded: bool = False
    """Start the embedded broker even where Mosquitto is installed."""
    watch: bool = False
    """Serve a page that shows the run while it goes on."""
    watch_port: Annotated[int, Meta(ge=0, le=65535)] = 8100
    tensorboard: bool = False
    """Leave TensorBoard's event files in the folder when the run is done."""


class Option(NamedTuple):
    """One setting. ``field`` is its path in ``Settings``, with dots; ``panel`` groups it in ``--help``."""

    field: str
    help: str
    panel: str


NETWORK, FAULTS, DEVICE, TRAINING, EVALUATION, PIPELINE = (
    "Network and data", "Faults", "What the device runs and sends", "Training", "Evaluation", "Pipeline",
)  # fmt: skip

OPTIONS: dict[str, Option] = {
    "network": Option("network", "A name of the zoo (see r2f doctor), or mypackage.mymodule:build for your own.", NETWORK),
    "activations": Option("activations", "uint8 where nothing is negative, and made for the faults; or all int8.", NETWORK),
    "quantise-for": Option(
        "quantised_for", "Share of the error rates to quantise for, 50% or 0.5; a plan's, or all, where not given.", NETWORK
    ),
    "deconvolution": Option("deconvolution", "How transposed convolutions run (docs/generative.md).", NETWORK),
    "baseline": Option("baseline", "Evaluate the paper's arithmetic too, for what is won in all.", EVALUATION),
    "weights": Option("weights", "Trained float weights: .safetensors, or a .pth that holds a state dict.", NETWORK),
    "modules": Option(
        "modules", "Folder where package.module:function is looked for; the current one where not given.", NETWORK
    ),
    "data": Option("data.source", "'digits', 'shapes', 'crops2x', latents:Z, an .npz, or a folder of class folders.", NETWORK),
    "image-size": Option("data.image_size", "HxWxC that a folder's images are scaled to.", NETWORK),
    "mean": Option(
        "data.mean", "Mean of each channel of pixels in 0..1, with commas; ImageNet's for colour, else the set's own.", NETWORK
    ),
    "std": Option("data.std", "Standard deviation, likewise.", NETWORK),
    "classes": Option("data.classes", "File with the network's class names in its order, one a line.", NETWORK),
    "ber": Option("", "Bit error rate at inputs, weights and outputs of MAC layers, 0 to 1.", FAULTS),
    "ber-input": Option("rates.input", "At inputs alone; --ber where not given.", FAULTS),
    "ber-weight": Option("rates.weight", "At weights alone; --ber where not given.", FAULTS),
    "ber-output": Option("rates.output", "At outputs alone; --ber where not given.", FAULTS),
    "ber-accumulator": Option("rates.accumulator", "At accumulators.", FAULTS),
    "fault-model": Option("fault_model", "Which bits flip: soft, burst, burst:BITS, or package.module:function.", FAULTS),
    "fault-map": Option("fault_map", "Chip file of the array's permanent faults (docs/chips.md).", FAULTS),
    "random-faults": Option("random_faults", "Share of the array that is faulty, 2% or 0.02: a random chip.", FAULTS),
    "chip-seed": Option("chip_seed", "Which of the random chips.", FAULTS),
    "known-map": Option("known_map", "Map that both sides predict with: a chip file, or 'device': the device's own.", FAULTS),
    "codec": Option("scheme.codec", "How outputs cross the link.", DEVICE),
    "vote": Option("scheme.vote", "How replicas are voted on.", DEVICE),
    "replicas": Option("scheme.replicas", "Executions of each layer for the vote, without --referee.", DEVICE),
    "referee": Option("scheme.referee", "As many executions as a layer needs, the CPU settling the rest.", DEVICE),
    "exact": Option("scheme.exact", "Repair what the server's digests say is wrong.", DEVICE),
    "theta": Option("scheme.theta", "Codec golden: less similar layers go direct.", DEVICE),
    "redundancy": Option("scheme.redundancy", "Codec golden: whose TMR it refers to.", DEVICE),
    "jpeg": Option("scheme.jpeg", "Quality of JPEG images that the device runs on; 0: none.", DEVICE),
    "float-inputs": Option("scheme.float_inputs", "Send images as float32, as the paper.", DEVICE),
    "protect": Option(
        "scheme.protected", "Layers in TMR: indices (see r2f layers) with commas, or a plan of r2f protect.", DEVICE
    ),
    "protect-plan": Option("plan", "The same from a plan of r2f protect: FILE.json, or FILE.json@50% for one budget.", DEVICE),
    "tmr": Option("scheme.tmr", "In inference: the whole network in TMR, layer or network wise.", DEVICE),
    "uncertain": Option("scheme.uncertain", "With --tmr: only where the two largest outputs are closer than that.", DEVICE),
    "accelerator": Option("accelerator", "What the agent drives: simulated, onnxruntime, or package.module:function.", DEVICE),
    "array": Option("array", "SCALE-Sim .cfg of the array whose time is modelled; a 32x32 one where not given.", DEVICE),
    "device": Option("device", "Name of the device; several with commas, or a pattern such as fleet-* of those there.", DEVICE),
    "fleet": Option("sharing", "Of several devices: each has a model of its own, or all share one.", DEVICE),
    "wait": Option("wait_s", "With --fleet common: seconds that a device may be later than half of them.", DEVICE),
    "hosts": Option("hosts", "Processes of each service that several devices started here share.", PIPELINE),
    "ranks": Option("ranks", "Processes that share the trainer's replay, at most --chunks; the model is the same.", PIPELINE),
    "codecs": Option("codecs", "Processes of the codec's server side that several devices share.", PIPELINE),
    "device-memory-mb": Option("device_memory_mb", "Memory of the device; its services wait rather than use more.", DEVICE),
    "method": Option("method", "Retrain, or correct biases alone: a few passes, no labels, no gradients.", TRAINING),
    "recipe": Option("", "How to retrain: ours, or the paper's plain descent on the device's labels.", TRAINING),
    "epochs": Option("recipe.epochs", "How often each training image is seen, without --iterations.", TRAINING),
    "iterations": Option("iterations", "Batches in all, corrections too, in place of --epochs.", TRAINING),
    "batch": Option("batch", "Images an iteration.", TRAINING),
    "accumulate": Option("recipe.accumulate", "Batches whose gradients make one update.", TRAINING),
    "chunks": Option("recipe.chunks", "Parts that a batch is replayed in, which --ranks processes can share.", TRAINING),
    "lr": Option("sgd.rate", "Highest learning rate, at most 100; chosen from network and faults where not given.", TRAINING),
    "schedule": Option("recipe.schedule", "Of the learning rate behind the warm-up.", TRAINING),
    "warmup": Option("recipe.warmup", "Share of the iterations in which the learning rate rises.", TRAINING),
    "optimiser": Option("sgd.rule", "Descent with momentum, or Adam, the default where outputs are images.", TRAINING),
    "momentum": Option("sgd.momentum", "Momentum of SGD, at most 0.999.", TRAINING),
    "weight-decay": Option("sgd.weight_decay", "Weight decay, at most 1.", TRAINING),
    "clip": Option("sgd.clip", "Largest norm of gradients, at most 1e6 (no clip); chosen likewise where not given.", TRAINING),
    "average": Option("recipe.average", "What the average of weights that is deployed keeps an update; 0: none.", TRAINING),
    "labels": Option("labels", "Where labels come from.", TRAINING),
    "loss": Option("loss", "Cross-entropy of classes; l1 or l2 of images, which is the default there.", TRAINING),
    "metric": Option(
        "metric", "What is measured: top1, top5, psnr, ssim or miou; by output and data if not given.", EVALUATION
    ),
    "output-range": Option(
        "output_range", "Of outputs that are images: black,white; 0,1 or -1,1, as they are, where not given.", EVALUATION
    ),
    "temperature": Option("recipe.temperature", "Of teacher-soft labels, 0.01 to 100.", TRAINING),
    "hard-labels": Option("recipe.hard", "Share of the loss against the device's labels, with teacher-soft.", TRAINING),
    "clean-gradient": Option("recipe.clean", "Share of the gradient taken without faults, on the server.", TRAINING),
    "drawn-gradient": Option(
        "recipe.drawn", "Share of the gradient from faulty passes of the server's own; by default images', all.", TRAINING
    ),
    "corrections": Option("recipe.corrections", "Batches by which biases are corrected first.", TRAINING),
    "ber-factor": Option("recipe.rate_factor", "Error rates in training over the device's.", TRAINING),
    "curriculum": Option("recipe.curriculum", "Share of the iterations in which error rates rise.", TRAINING),
    "flip": Option("recipe.flip", "Mirror half of the images; tried on the float network where not given.", TRAINING),
    "shift": Option("recipe.shift", "Move images by up to so many pixels; tried likewise where not given.", TRAINING),
    "selection-samples": Option(
        "recipe.selection", "Training images kept for deciding what is deployed; 0: the last is.", TRAINING
    ),
    "checks": Option("recipe.checks", "How often what was learnt is tried on those.", TRAINING),
    "seed": Option("seed", "Of the order of samples and of faults.", TRAINING),
    "checkpoint-every": Option("checkpoint_every", "Iterations between checkpoints.", TRAINING),
    "eval-seeds": Option("evaluation_seeds", "Fault seeds of each evaluation.", EVALUATION),
    "eval-samples": Option("evaluation_samples", "At most this many held-out images, evenly over all of them.", EVALUATION),
    "link": Option("link", "Link profile: lora, 802.15.4g, hspa, lte.", PIPELINE),
    "live": Option("live", "Make the link real: a shaping proxy between two brokers.", PIPELINE),
    "broker": Option("broker", "A broker that runs already; one is started where not given.", PIPELINE),
    "launch": Option("launch", "Start the services too; the default without --broker.", PIPELINE),
    "external": Option(
        "external", "Services not started, for other programs are: agent, voter, codec-device, with commas.", PIPELINE
    ),
    "trainer": Option("trainer", "Start the trainer too; without, one waits: services.trainer --next OUT.", PIPELINE),
    "embedded": Option("embedded", "Start the embedded broker even where Mosquitto is installed.", PIPELINE),
    "watch": Option("watch", "Show the run on a page of this host while it goes on (docs/watching.md).", PIPELINE),
    "watch-port": Option("watch_port", "Port of that page; 0, or where it is taken, a free one.", PIPELINE),
    "tensorboard": Option("tensorboard", "Write event files for tensorboard --logdir while it runs.", PIPELINE),
}


@cache
def type_of(name: str) -> Any:
    """Type of a setting, with its bounds (``typing.Annotated``)."""
    if name == "ber":
        return get_type_hints(Rates, include_extras=True)["input"]
    if name == "recipe":
        return RecipeName
    kind: Any = Settings
    for part in OPTIONS[name].field.split("."):
        kind = get_type_hints(kind, include_extras=True)[part]
    return kind


def default_of(name: str) -> Any:
    """Value of a setting that nobody gave."""
    return DEFAULTS[name]


def parse(values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Settings from values by name, in the words of a command line or already typed; others are ``base``'s.

    None counts as not given. Raises SettingsError for a name that there is not, or a value that means nothing.
    """
    given = {name.replace("_", "-"): value for name, value in values.items() if value is not None}
    if isinstance(given.get("protect"), str | Path) and ".json" in str(given["protect"]):
        given["protect-plan"] = given.pop("protect")
    unknown = [name for name in given if name not in OPTIONS]
    if unknown:
        raise SettingsError(f"{unknown[0]}: no such setting; known are {', '.join(OPTIONS)}")
    typed = {name: _typed(name, value) for name, value in given.items()}
    settings = Settings() if base is None else base
    if "ber" in typed:
        rate = typed.pop("ber")
        typed = {f"ber-{site}": rate for site in ("input", "weight", "output")} | typed
    if typed.pop("recipe", "ours") == "paper":
        typed = flat(msgspec.structs.replace(settings, **PLAIN), list(PLAIN)) | typed
    for name in (name for name in OPTIONS if name in typed):
        settings = _replaced(settings, OPTIONS[name].field.split("."), typed[name])
    if "launch" not in typed and typed.get("broker") is not None:
        settings = msgspec.structs.replace(settings, launch=bool(settings.external))
    if settings.external and (settings.broker is None or not settings.launch):
        what = "without --launch none is started" if settings.broker else "give --broker, on which it is to be found"
        raise SettingsError(f"--external {','.join(settings.external)}: {what}")
    return settings


def flat(settings: Settings, fields: Collection[str] = Settings.__struct_fields__) -> dict[str, Any]:
    """Every setting in these fields by name, but those that are None: what ``parse`` makes the same settings of."""
    found: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        if option.field and option.field.split(".")[0] in fields:
            value: Any = settings
            for part in option.field.split("."):
                value = getattr(value, part)
            if value is not None:
                found[name] = list(value) if isinstance(value, tuple) else value
    return found


def resolved(settings: Settings) -> Settings:
    """The same with paths that hold in any folder, and without the broker's password."""
    data = settings.data
    source = data.source if data.source == DIGITS or is_made(data.source) else _absolute(data.source)
    data = msgspec.structs.replace(data, source=source, classes=_absolute(data.classes))
    return msgspec.structs.replace(
        settings,
        data=data,
        modules=_absolute(settings.modules or "."),
        weights=_absolute(settings.weights),
        array=_absolute(settings.array),
        fault_map=_absolute(settings.fault_map),
        known_map=settings.known_map if settings.known_map == DEVICES_OWN else _absolute(settings.known_map),
        plan=_absolute(settings.plan),
        broker=None if settings.broker is None else without_password(settings.broker),
    )


def write(folder: Path, settings: Settings) -> None:
    """Leaves ``run.toml`` in a run's folder, for its owner alone, whole or not at all."""
    head = "# Every setting of this run; r2f retrain --config takes this file.\n"
    write_whole(folder / FILE, (head + tomli_w.dumps(flat(settings))).encode(), mode=0o600)


def read(path: Path) -> Settings:
    """The settings in a file of the ``run.toml`` kind. Raises SettingsError, which names the file."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    try:
        return parse(values)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def _typed(name: str, value: Any) -> Any:
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and not value.strip() and name != "protect":
        raise SettingsError(f"--{name}: it is empty; give a value or leave it out")
    if isinstance(value, str) and name in _WORDS:
        value = _WORDS[name](name, value)
    try:
        found = msgspec.convert(value, type_of(name), strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        raise SettingsError(f"--{name} {_said(value)}: {_plain(str(error), bounds(name))}") from None
    if isinstance(found, float) and not math.isfinite(found):
        raise SettingsError(f"--{name} {found}: expected a finite number")
    if name == "external":
        return tuple(dict.fromkeys(found))
    if name == "protect":
        return tuple(sorted(set(found)))
    if name == "device":
        try:
            devices.checked(found)
        except ValueError as error:
            raise SettingsError(f"--device {found[:200]}: {error}") from None
    return found


def bounds(name: str) -> str:
    """The range of a setting that is one number, as ``> 0 and <= 100``; empty where it has none."""
    parts = [type_of(name)]
    while parts:
        part = parts.pop()
        if isinstance(part, Meta):
            return said(part)
        parts += get_args(part)
    return ""


def _plain(error: str, range_: str) -> str:
    """What msgspec says of a value, in the words of somebody who knows no types; of a range it says both ends."""
    words = {
        "`int`": "a whole number", "`float`": "a number", "`str`": "text", "`bool`": "true or false", "`array`": "a list",
    }  # fmt: skip
    found = re.sub(r"`(\w+) \| null`", r"`\1`", error)
    for typed, plain in words.items():
        found = found.replace(typed, plain)
    found = re.sub(r"(?<=number) [<>]=? \S+$", lambda _: f" {range_}", found)
    return found[0].lower() + found[1:]


def _said(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _size(name: str, text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise SettingsError(f"--{name} {text!r}: expected HxWxC, e.g. 224x224x3")
    return tuple(map(int, parts))


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"--{name} {text!r}: expected a number for each channel, e.g. 0.485,0.456,0.406") from None


def _indices(name: str, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        found = (-1,)
    if min(found, default=0) < 0:
        raise SettingsError(f"--{name} {text!r}: expected layer indices such as 0,3,7; r2f layers lists them")
    return found


def _several(name: str, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _share(name: str, text: str) -> float:
    number, percent, rest = text.strip().partition("%")
    try:
        found = float(number) / (100 if percent else 1)
    except ValueError:
        found = math.nan
    if rest or not math.isfinite(found):
        raise SettingsError(f"--{name} {text!r}: expected a share, such as 2% or 0.02")
    return found


_WORDS: dict[str, Callable[[str, str], Any]] = {
    "external": _several, "random-faults": _share, "quantise-for": _share, "image-size": _size, "mean": _numbers,
    "std": _numbers, "output-range": _numbers, "protect": _indices,
}  # fmt: skip
"""Settings that a command line writes in words of their own: several numbers, or a share."""


def _replaced(struct: Any, path: list[str], value: Any) -> Any:
    if len(path) > 1:
        value = _replaced(getattr(struct, path[0]), path[1:], value)
    try:
        return msgspec.structs.replace(struct, **{path[0]: value})
    except ValueError as error:  # a struct's own check
        raise SettingsError(str(error)) from None


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def without_password(url: str) -> str:
    """A broker's address with the user's name at most."""
    head, at, host = url.rpartition("@")
    scheme, slashes, user = head.rpartition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{host}"


DEFAULTS: dict[str, Any] = {name: flat(Settings()).get(name) for name in OPTIONS} | {"ber": 1e-4, "recipe": "ours"}
