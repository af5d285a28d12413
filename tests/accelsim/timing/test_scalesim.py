"""SCALE-Sim's files, and its cycles where the package is at hand.

Set R2F_SCALESIM_PYTHON to the Python of an environment with ``scalesim==3.0.0`` and ``numpy<2.4`` for the last test.
"""

from __future__ import annotations

import csv
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accelsim.int8.network import INPUT, Conv, Network, Shape, Way
from accelsim.lowering.deconv import Operand, convolutions, mac_layers
from accelsim.timing import Array, layer_cycles
from accelsim.timing.scalesim import multiplicity, read_config, topology, write_config


def conv(
    name: str,
    input_shape: Shape,
    filters: int,
    kernel: tuple[int, int] = (3, 3),
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
    dilation: int = 1,
    groups: int = 1,
) -> Conv:
    height, width = (
        (input_shape[side] + 2 * padding[side] - dilation * (kernel[side] - 1) - 1) // stride + 1 for side in (0, 1)
    )
    return Conv(
        name=name,
        inputs=(INPUT,),
        shape=(height, width, filters),
        scale=1.0,
        weight=np.ones((filters, input_shape[2] // groups, *kernel), np.int8),
        bias=np.zeros(filters, np.int32),
        weight_scale=np.ones(filters, np.float32),
        multiplier=np.ones(filters, np.float32),
        stride=(stride, stride),
        padding=padding,
        dilation=(dilation, dilation),
        groups=groups,
    )


LAYERS: list[tuple[Shape, Conv]] = [
    ((8, 8, 3), conv("stem", (8, 8, 3), 5)),
    ((9, 7, 4), conv("strided", (9, 7, 4), 6, stride=2)),
    ((10, 10, 2), conv("remainder", (10, 10, 2), 3, stride=3, padding=(0, 0))),
    ((6, 6, 8), conv("pointwise", (6, 6, 8), 20, (1, 1), padding=(0, 0))),
    ((7, 7, 6), conv("depthwise", (7, 7, 6), 6, groups=6)),
    ((7, 7, 8), conv("grouped", (7, 7, 8), 12, groups=2)),
    ((12, 12, 3), conv("dilated", (12, 12, 3), 4, padding=(2, 2), dilation=2)),
    ((1, 1, 40), conv("linear", (1, 1, 40), 10, (1, 1), padding=(0, 0))),
    ((5, 9, 4), conv("tall", (5, 9, 4), 9, (3, 1), padding=(1, 0))),
    ((11, 11, 3), conv("large", (11, 11, 3), 7, (5, 5), padding=(2, 2), stride=2)),
    ((4, 4, 16), conv("many.k", (4, 4, 16), 3)),
    ((4, 4, 2), conv("many.n", (4, 4, 2), 33)),
]


def network(layers: list[Conv]) -> Network:
    return Network(
        name="rows",
        input_shape=(8, 8, 3),
        input_scale=1.0,
        input_table=np.zeros((3, 256), np.int8),
        layers=tuple(layers),
    )


def test_rows_give_the_layers_own_k_n_and_t() -> None:
    plan = network([layer for _, layer in LAYERS])
    rows = list(csv.reader(topology(plan).splitlines(), skipinitialspace=True))
    assert len(rows) == 1 + len(LAYERS)
    for (_, layer), row, count in zip(LAYERS, rows[1:], multiplicity(plan), strict=True):
        assert row[-1] == ""  # SCALE-Sim drops what follows the last comma
        height, width, r, s, depth, filters, stride = map(int, row[1:-1])
        filters_all, depth_all, kernel_h, kernel_w = layer.weight.shape
        assert (r, s, depth) == (kernel_h, kernel_w, depth_all)
        assert (filters * count, count) == (filters_all, layer.groups)
        # SCALE-Sim rounds up where torch rounds down, so the size must come out exact.
        assert (height - r) % stride == (width - s) % stride == 0
        assert ((height - r) // stride + 1, (width - s) // stride + 1) == layer.shape[:2]


def test_undilated_rows_are_the_padded_input() -> None:
    row = topology(network([LAYERS[0][1]])).splitlines()[1]
    assert row == "0:stem, 10, 10, 3, 3, 3, 5, 1,"


def test_names_cannot_break_the_file() -> None:
    row = topology(network([conv("a,DPW", (8, 8, 3), 5)])).splitlines()[1]
    assert row.startswith("0:a_dpW, 10")


def test_two_strides_are_refused_by_name() -> None:
    uneven = replace(LAYERS[0][1], stride=(1, 2), shape=(8, 4, 5))
    with pytest.raises(ValueError, match=r"stem.*stride"):
        topology(network([uneven]))


def test_config_comes_back_as_written(tmp_path: Path) -> None:
    array = Array(rows=8, columns=16, input_kb=64, weight_kb=32, output_kb=16, clock_hz=5e8)
    write_config(array, tmp_path / "array.cfg")
    assert read_config(tmp_path / "array.cfg", clock_hz=5e8) == array


def test_config_of_scalesims_own_style_is_read(tmp_path: Path) -> None:
    path = tmp_path / "eyeriss.cfg"
    path.write_text(
        "[general]\nrun_name = x\n[architecture_presets]\nArrayHeight:    12\nArrayWidth:     14\n"
        "ifmapsramszkB:  108\nfiltersramszkB: 109\nofmapsramszkB:  110\nDataflow : ws\n"
    )
    assert read_config(path) == Array(rows=12, columns=14, input_kb=108, weight_kb=109, output_kb=110)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "architecture_presets"),
        ("ArrayHeight", "architecture_presets"),
        ("[architecture_presets]\nArrayHeight=4\n", "ArrayWidth"),
        ("[architecture_presets]\nArrayHeight=-4\nArrayWidth=4\n", "ArrayHeight"),
        ("[architecture_presets]\nDataflow=os\n", "weight-stationary"),
        (
            "[architecture_presets]\nArrayHeight=0\nArrayWidth=4\nIfmapSramSzkB=1\nFilterSramSzkB=1\nOfmapSramSzkB=1\n",
            "rows must be at least 1",
        ),
    ],
)
def test_bad_config_names_file_and_field(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.cfg"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as raised:
        read_config(path)
    assert str(path) in str(raised.value)


_LAYOUT_COLUMNS = 21
_RUN = """
import sys
from scalesim.scale_sim import scalesim
config, topology, layout, out = sys.argv[1:]
scalesim(save_disk_space=True, verbose=False, config=config, topology=topology, layout=layout).run_scale(top_path=out)
"""


def deconvolution() -> list[tuple[Shape, Conv]]:
    """The convolutions of one transposed convolution, 5x5 by 2 on 6x5x9, in all four ways."""
    layer = conv("up", (6, 5, 9), 10, (5, 5))
    layer = replace(layer, shape=(12, 10, 10), stride=(2, 2), padding=(2, 2))
    ways: tuple[Way, ...] = ("zero-padded", "split", "phases", "merged")
    found: list[tuple[Shape, Conv]] = []
    for way in ways:
        made = convolutions(layer, Operand((6, 5, 9), 1.0, True), 0, way)
        found += [(shape, replace(one, name=f"{way}.{one.name}")) for one, shape in mac_layers(made, (6, 5, 9), 0)]
    assert len(found) == 1 + 4 + 4 + 1
    return found


@pytest.mark.parametrize("layers", [LAYERS, deconvolution()], ids=["layers", "deconvolution"])
def test_cycles_are_scalesims_plus_one(tmp_path: Path, layers: list[tuple[Shape, Conv]]) -> None:
    python = os.environ.get("R2F_SCALESIM_PYTHON")
    if not python:
        pytest.skip("set R2F_SCALESIM_PYTHON to a Python with scalesim==3.0.0 and numpy<2.4 to compare cycles with it")
    array = Array(rows=8, columns=8, input_kb=64, weight_kb=64, output_kb=64)
    plan = network([layer for _, layer in layers])
    text = topology(plan)
    (tmp_path / "net.csv").write_text(text)
    lines = [",".join([row.split(",")[0], *["1"] * (_LAYOUT_COLUMNS - 1)]) + "," for row in text.splitlines()]
    (tmp_path / "layout.csv").write_text("\n".join(lines) + "\n")
    write_config(array, tmp_path / "array.cfg")
    (tmp_path / "out").mkdir()
    names = [str(tmp_path / name) for name in ("array.cfg", "net.csv", "layout.csv", "out")]
    subprocess.run([python, "-c", _RUN, *names], check=True, capture_output=True, text=True, timeout=100)
    with (tmp_path / "out" / "r2f" / "COMPUTE_REPORT.csv").open() as file:
        report = list(csv.reader(file, skipinitialspace=True))
    column = report[0].index("Total Cycles")
    assert len(report) == 1 + len(layers)
    for (shape, layer), row in zip(layers, report[1:], strict=True):
        reported = int(float(row[column]))
        assert layer_cycles(layer, shape, array) == layer.groups * (reported + 1), layer.name
