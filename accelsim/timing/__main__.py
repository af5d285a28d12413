"""``python -m accelsim.timing NETWORK``: what the modelled array takes for an int8 network, and SCALE-Sim's files of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from accelsim.int8 import storage
from accelsim.timing import Array, NetworkTiming, network_timing
from accelsim.timing.scalesim import multiplicity, read_config, topology, write_config


def main(
    network: Annotated[Path, typer.Argument(help="An int8 network, as a run leaves it: a .safetensors file.")],
    batch: Annotated[int, typer.Option(min=1, help="Images of the batch.")] = 16,
    executions: Annotated[int, typer.Option(min=1, help="How often each layer runs: 3 is TMR.")] = 3,
    array: Annotated[Path | None, typer.Option(help="The array: a SCALE-Sim .cfg [default: 32x32]")] = None,
    scalesim: Annotated[
        Path | None, typer.Option(help="Folder to write topology.csv and array.cfg for SCALE-Sim 3.0 to.")
    ] = None,
) -> None:
    """Cycles of one image, and seconds and bytes of a batch, a MAC layer a line and the sum; all of it modelled."""
    try:
        loaded = storage.load(network)
        timed = Array() if array is None else read_config(array)
        print("\n".join(table(network_timing(loaded, batch, timed, executions=executions), multiplicity(loaded))))
        if scalesim is not None:
            scalesim.mkdir(parents=True, exist_ok=True)
            (scalesim / "topology.csv").write_text(topology(loaded))
            write_config(timed, scalesim / "array.cfg")
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def table(timing: NetworkTiming, groups: tuple[int, ...]) -> list[str]:
    """Lines of the table: a head, one a MAC layer, and the sums. DRAM and buffer are MB (10^6 bytes) of one execution."""
    columns = ("kcycles", "FP ms", "write ms", "TMR ms", "DRAM MB", "buffer MB")
    sums = [0.0] * len(columns)
    lines = [f"{'layer':>5} {'groups':>6} {' '.join(f'{column:>9}' for column in columns)}  name"]
    for layer, count in zip(timing.layers, groups, strict=True):
        moved = layer.traffic
        row = [
            layer.cycles / 1e3, layer.forward_s * 1e3, layer.write_back_s * 1e3, layer.tmr_s * 1e3, moved.dram / 1e6,
            (moved.buffer_reads + moved.buffer_writes) / 1e6,
        ]  # fmt: skip
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        lines.append(f"{layer.index:>5} {count:>6} {_cells(row)}  {layer.name}")
    return [*lines, f"{'sum':>5} {'':>6} {_cells(sums)}  batch of {timing.batch}"]


def _cells(numbers: list[float]) -> str:
    return " ".join(f"{number:>9.3f}" for number in numbers)


if __name__ == "__main__":
    typer.run(main)
