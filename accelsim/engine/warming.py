"""Compiling ahead of time."""

from __future__ import annotations

from typing import Any

import numpy as np

from accelsim.engine.engine import Engine
from accelsim.int8.network import (
    INPUT,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Interleave,
    Layer,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Resample,
    Slice,
    Table,
)


def warm() -> None:
    """Compile every kernel now, or load it from Numba's cache (``NUMBA_CACHE_DIR``), instead of at the first batch.

    About 15 s where nothing is cached, half a second otherwise.
    """
    network = every_layer()
    # What a MAC layer's faults need was compiled by the check of the path.
    x = np.zeros((1, *network.input_shape), np.int8)
    engine = Engine(network)
    engine.run(x)
    engine.elements(0, x, np.zeros(1, np.int64))


def every_layer() -> Network:
    """A small network with a layer of each type."""
    shape = (2, 2, 2)
    here: dict[str, Any] = {"inputs": (INPUT,), "shape": shape, "scale": 1.0}
    both = here | {"inputs": (INPUT, INPUT)}
    pool: dict[str, Any] = here | {"kernel": (1, 1), "stride": (1, 1)}
    ones = np.ones(2, np.float32)
    layers: tuple[Layer, ...] = (
        Conv(
            **here, name="conv", weight=np.zeros((2, 2, 1, 1), np.int8), bias=np.zeros(2, np.int32), weight_scale=ones,
            multiplier=ones,
        ),
        Add(**both, name="add", multipliers=(1.0, 1.0)),
        Concat(**both | {"shape": (2, 2, 4)}, name="concat", multipliers=(1.0, 1.0)),
        MaxPool(**pool, name="max"),
        MeanPool(**pool, name="mean", multiplier=1.0),
        Mul(**both, name="mul", multiplier=1.0),
        Table(**here, name="table", table=np.zeros(256, np.int8), slope=np.zeros(256, np.float32)),
        Channels(**here, name="channels", order=np.arange(2, dtype=np.int32)),
        Slice(**here, name="slice", offset=(0, 0, 0)),
        Flatten(**here | {"shape": (1, 1, 8)}, name="flatten"),
        Interleave(
            **here | {"shape": (4, 4, 2)}, name="interleave", step=(2, 2), blocks=np.array([[0, 0, 1, 1]], np.int32),
            taps=np.zeros((0, 2), np.int32),
        ),
        Resample(
            **here, name="resample", rows=np.zeros((2, 1), np.int32), row_weights=np.ones((2, 1), np.int32),
            columns=np.zeros((2, 1), np.int32), column_weights=np.ones((2, 1), np.int32), multiplier=1.0,
        ),
    )  # fmt: skip
    table = np.zeros((2, 256), np.int8)
    return Network(name="warm", input_shape=shape, input_scale=1.0, input_table=table, layers=layers)
