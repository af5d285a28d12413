"""A network's layers as a table: the rows of ``r2f layers``."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from accelsim import datasets, zoo
from accelsim.datasets import IMAGENET_MEAN, IMAGENET_STD, spread
from accelsim.int8.network import Conv, Network, UInt8
from accelsim.lowering import lower
from accelsim.named import looking_in
from accelsim.zoo.generative import INPUTS
from r2f import prepare, run
from r2f import settings as settings_file
from r2f.settings import DEMO_NETWORK, Settings, SettingsError

SIZES = dict.fromkeys(zoo.NETWORKS, (224, 224, 3)) | {"resnet20": (32, 32, 3), "resnet56": (32, 32, 3)} | INPUTS
"""(H, W, C) of the images that the zoo's networks were made for; the demo's has its data."""
IMAGES = 16
"""As many are enough to lower a network whose indices are asked for, not its accuracy."""


def asked(name: str | None, folder: Path | None, given: Mapping[str, Any]) -> Table:
    """The table that ``r2f layers`` prints: of the network ``name``, or of a run's folder, or of what the options say.

    Raises ValueError where they say it twice, or where one of them does not fit.
    """
    if name is not None:
        if "network" in given:
            raise SettingsError(f"layers {name}: --network {given['network']} is given too; name the network once")
        given = {**given, "network": name}
    if folder is not None:
        if given:
            option = name if name is not None else f"--{next(iter(given))}"
            raise SettingsError(f"--run {folder}: a run has its own network and settings; leave out {option}")
        return table(of_run(folder))
    settings = settings_file.parse(given)
    found = table(of_settings(settings, given))
    if settings.weights is None:
        found.caption = Text("weights are random; indices and shapes are the same with any")
        found.caption_justify = "left"
    return found


def of_run(folder: Path) -> Network:
    """The network of a run's folder. Raises ValueError that names the file where it is none."""
    run.read_settings(folder)
    return prepare.network_of(folder)


def of_settings(settings: Settings, given: Mapping[str, Any]) -> Network:
    """The network that a run with these settings would start from, but for its ranges.

    Without weights it has random ones, which changes no index; without data it is lowered on noise of ``--image-size``, for a
    network of the zoo of the size that it was made for. Raises ValueError that names what does not fit.
    """
    settings = settings_file.resolved(settings)
    prepare.check_files(settings)
    if settings.network not in zoo.NETWORKS and ":" not in settings.network:
        zoo.build(settings.network)  # raises, naming those there are
    mean, std = settings.data.mean, settings.data.std
    shape = settings.data.image_size or SIZES.get(settings.network)
    images: UInt8
    if "data" in given or settings.network == DEMO_NETWORK:
        data = datasets.open(settings.data)
        images, mean, std = data.train_images[spread(IMAGES, len(data.train_images))], data.mean, data.std
    elif shape is None:
        raise SettingsError(f"network {settings.network}: give its --data, or its --image-size HxWxC")
    else:
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), np.uint8)
        grey = ((0.5,) * shape[2], (0.25,) * shape[2])
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if shape[2] == len(IMAGENET_MEAN) else grey
    with looking_in(settings.modules):
        module = zoo.load(settings.network, settings.weights, say=lambda text: print(text, file=sys.stderr))
    return lower(module, images, mean, std, name=settings.network)


def table(network: Network) -> Table:
    """One row a layer; MAC layers, which run on the accelerator and can be protected, stand out."""
    macs = {index: layer.weight[0].size * math.prod(layer.shape) for index, layer in network.convs()}
    title = f"{network.name}: {len(macs)} MAC layers of {len(network.layers)}, {sum(macs.values()) / 1e6:.4g} M MACs an image"
    grid = Table(
        "index", "layer", "type", "output", "weights", "M MACs", "share", title=Text(title), title_justify="left", box=None
    )
    for index, layer in enumerate(network.layers):
        shape = "x".join(map(str, layer.shape))
        if isinstance(layer, Conv):
            share = f"{100 * macs[index] / sum(macs.values()):.1f} %"
            weights = "x".join(map(str, layer.weight.shape))
            grid.add_row(str(index), Text(layer.name), "MAC", shape, weights, f"{macs[index] / 1e6:.4g}", share, style="bold")
        else:
            grid.add_row(str(index), Text(layer.name), type(layer).__name__, shape, style="dim")
    return grid
