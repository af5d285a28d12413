"""Files of SCALE-Sim 3.0: a network as a topology CSV, the array as a ``.cfg`` (architecture.md, "Time").

SCALE-Sim has no padding, no dilation and no groups, and one stride. So a layer is written with the input that its
windows really cover, padding included: ``(output - 1) * stride + kernel`` a side. Its K, N and T, and with them its
cycles, are the layer's own. A row stands for one group; ``multiplicity`` says how often the layer runs it.
"""

from __future__ import annotations

import configparser
from pathlib import Path

from accelsim.int8.network import Conv, Network
from accelsim.timing import Array

COLUMNS = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,"

_SIZES = {
    "rows": "ArrayHeight",
    "columns": "ArrayWidth",
    "input_kb": "IfmapSramSzkB",
    "weight_kb": "FilterSramSzkB",
    "output_kb": "OfmapSramSzkB",
}


def layer_row(index: int, conv: Conv) -> str:
    """One group of a MAC layer as a line of a topology file.

    Raises ValueError where the two strides differ, which SCALE-Sim cannot express.
    """
    if conv.stride[0] != conv.stride[1]:
        raise ValueError(f"layer {conv.name!r}: SCALE-Sim has one stride for both sides, this layer's are {conv.stride}")
    filters, depth, kernel_h, kernel_w = conv.weight.shape
    height, width = ((conv.shape[side] - 1) * conv.stride[0] + (kernel_h, kernel_w)[side] for side in (0, 1))
    # SCALE-Sim splits fields at commas and takes "DP" anywhere in a name for a depthwise layer.
    name = conv.name.replace(",", "_").replace("DP", "dp")
    fields = (f"{index}:{name}", height, width, kernel_h, kernel_w, depth, filters // conv.groups, conv.stride[0])
    return ", ".join(map(str, fields)) + ","


def topology(network: Network) -> str:
    """The network's MAC layers as the text of a topology CSV, in order, one group of each.

    Raises ValueError naming the layer that SCALE-Sim cannot express.
    """
    return "\n".join([COLUMNS, *(layer_row(index, conv) for index, conv in network.convs())]) + "\n"


def multiplicity(network: Network) -> tuple[int, ...]:
    """How often each row of ``topology`` counts: the layer's groups."""
    return tuple(conv.groups for _, conv in network.convs())


def write_config(array: Array, path: Path, *, run_name: str = "r2f") -> None:
    """Write a ``.cfg`` that SCALE-Sim 3.0 reads: weight-stationary, its own estimate of bandwidth.

    The clock, the memory and the vote rate have no field there; ``read_config`` takes them as arguments.
    """
    config = configparser.ConfigParser()
    config.optionxform = str  # type: ignore[assignment,method-assign]  # keep SCALE-Sim's capitals
    config["general"] = {"run_name": run_name}
    config["architecture_presets"] = {
        **{field: str(getattr(array, name)) for name, field in _SIZES.items()},
        "IfmapOffset": "0",
        "FilterOffset": "10000000",
        "OfmapOffset": "20000000",
        "Bandwidth": "10",
        "Dataflow": "ws",
        "ReadRequestBuffer": "32",
        "WriteRequestBuffer": "32",
    }
    operands = ("Ifmap", "Filter")
    config["layout"] = {
        **{f"{operand}CustomLayout": "False" for operand in operands},
        **{f"{operand}SRAMBank{field}": "10" for operand in operands for field in ("Bandwidth", "Num")},
        **{f"{operand}SRAMBankPort": "2" for operand in operands},
    }
    config["sparsity"] = {"SparsitySupport": "false"}
    config["run_presets"] = {"InterfaceBandwidth": "CALC", "UseRamulatorTrace": "False"}
    with path.open("w") as file:
        config.write(file)


def read_config(path: Path, *, clock_hz: float = 200e6) -> Array:
    """The array of a SCALE-Sim ``.cfg``; the clock is not in there, so it is an argument.

    Raises ValueError naming the file and the field that is missing, is no positive whole number, or is a dataflow
    other than weight-stationary; OSError where the file cannot be read.
    """
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read_string(path.read_text(), source=path.name)
        presets = config["architecture_presets"]
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not a SCALE-Sim configuration with [architecture_presets]: {why}") from error
    dataflow = presets.get("Dataflow", "ws")
    if dataflow != "ws":
        raise ValueError(f"{path}: Dataflow is {dataflow!r}; this model is of weight-stationary arrays, write 'ws'")
    sizes = {}
    for name, field in _SIZES.items():
        text = presets.get(field)
        if text is None or not text.strip().isdecimal():
            raise ValueError(f"{path}: {field} must be a positive whole number, got {text!r}")
        sizes[name] = int(text)
    try:
        return Array(**sizes, clock_hz=clock_hz)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
