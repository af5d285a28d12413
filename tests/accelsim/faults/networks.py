"""A small network with every way in which channels go through layers, for tests of what lies where on an array."""

from __future__ import annotations

import numpy as np

from accelsim.int8.network import (
    INPUT,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Slice,
    Table,
)


def mixed(seed: int = 0) -> Network:
    """Convolutions plain, depthwise and grouped, residual sums, an option-A shortcut, concat, shuffle, gate, table, flatten."""
    random = np.random.default_rng(seed)

    def conv(name: str, source: int, depth: int, shape: tuple[int, int, int], kernel: int = 3, groups: int = 1) -> Conv:
        weight = random.integers(-127, 128, (shape[2], depth // groups, kernel, kernel), np.int8)
        largest = 40 * np.sqrt(weight[0].size)
        return Conv(
            name=name, inputs=(source,), shape=shape, scale=1.0, weight=weight,
            bias=random.integers(-2000, 2000, shape[2], np.int32),
            weight_scale=(random.random(shape[2]) + 0.5).astype(np.float32),
            multiplier=((random.random(shape[2]) + 0.5) / largest).astype(np.float32),
            padding=(kernel // 2, kernel // 2), groups=groups, high=random.integers(90, 128, shape[2]).astype(np.int32),
        )  # fmt: skip

    table = random.integers(-128, 128, 256).astype(np.int8)
    layers = (
        conv("stem", INPUT, 3, (4, 4, 8)),  # 0
        conv("inner", 0, 8, (4, 4, 12)),  # 1
        conv("back", 1, 12, (4, 4, 8), kernel=1),  # 2
        Add(name="sum", inputs=(2, 0), shape=(4, 4, 8), scale=1.0, multipliers=(0.5, 0.5)),  # 3
        Slice(name="wider", inputs=(3,), shape=(4, 4, 14), scale=1.0, offset=(0, 0, -3)),  # 4
        conv("wide", 3, 8, (4, 4, 14)),  # 5
        Add(name="sum2", inputs=(5, 4), shape=(4, 4, 14), scale=1.0, multipliers=(0.5, 0.5)),  # 6
        conv("depthwise", 6, 14, (4, 4, 14), groups=14),  # 7
        Table(name="table", inputs=(7,), shape=(4, 4, 14), scale=1.0, table=table, slope=np.ones(256, np.float32)),  # 8
        Concat(name="concat", inputs=(8, 6, 1), shape=(4, 4, 40), scale=1.0, multipliers=(1.0, 0.5, 1.0)),  # 9
        Channels(name="mixed", inputs=(9,), shape=(4, 4, 40), scale=1.0, order=random.permutation(40).astype(np.int32)),  # 10
        conv("apart", 10, 40, (4, 4, 8), kernel=1),  # 11
        conv("after", 10, 40, (4, 4, 10), kernel=1),  # 12
        MeanPool(name="gate", inputs=(12,), shape=(1, 1, 10), scale=1.0, kernel=(4, 4), stride=(4, 4), multiplier=1 / 16),  # 13
        Mul(name="gated", inputs=(12, 13), shape=(4, 4, 10), scale=1.0, multiplier=1 / 64),  # 14
        MaxPool(name="pool", inputs=(14,), shape=(2, 2, 10), scale=1.0, kernel=(2, 2), stride=(2, 2)),  # 15
        Flatten(name="flat", inputs=(15,), shape=(1, 1, 40), scale=1.0),  # 16
        conv("grouped", 11, 8, (4, 4, 8), groups=2),  # 17
        MaxPool(name="pool2", inputs=(17,), shape=(1, 1, 8), scale=1.0, kernel=(4, 4), stride=(4, 4)),  # 18
        Concat(name="both", inputs=(16, 18), shape=(1, 1, 48), scale=1.0, multipliers=(1.0, 1.0)),  # 19
        conv("hidden", 19, 48, (1, 1, 9), kernel=1),  # 20
        conv("head", 20, 9, (1, 1, 6), kernel=1),  # 21
    )
    pixels = np.tile(np.arange(-128, 128, dtype=np.int64).astype(np.int8), (3, 1))
    return Network(name="mixed", input_shape=(4, 4, 3), input_scale=1.0, input_table=pixels, layers=layers)
