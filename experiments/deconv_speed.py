"""Generative networks on an array that knows no transposed convolution: cycles and energy of four ways to run them.

``python -m experiments.deconv_speed --json FILE`` times the transposed convolutions that enlarge an image, of the six networks
of Xu et al. 2019 and three more, at batch 1 and 16, and prints them beside the paper's speedups; ``--check`` also runs each
network at full size in all ways and compares all integers (minutes). Speedups and energies are over zero-padding, of the
modelled 32x32 array (docs/timing.md); they need no weights. ``deconv_speed.png`` goes into --out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from accelsim.int8.network import Way
from accelsim.timing import Array
from experiments.common import command, deconvolutions, figure, runner, style
from experiments.common.deconvolutions import BATCHES, WEIGHTS, Agreement, Checked, Cost, Found, Timed, Timing

PUBLISHED: Final = {
    "dcgan": 2.87, "sngan": 3.55, "artgan": 3.46, "gp_gan": 3.60, "monodepth": 2.12, "fast_style_transfer": 2.06,
}  # fmt: skip
"""Xu et al.'s split over zero-padding, measured by its authors on an EdgeTPU's host runtime (README of their code)."""
SIX: Final = tuple(PUBLISHED)
OTHERS: Final = ("unet", "dcgan_faces", "waifu2x")
OURS: Final[tuple[Way, ...]] = ("phases", "merged")
AIM: Final = 3.6


def best(layer: Timing, batch: int) -> Cost:
    """Phases or merged, whichever takes fewer cycles."""
    return min((cost(layer, way, batch) for way in OURS), key=lambda one: one.cycles)


def cost(layer: Timing, way: Way, batch: int) -> Cost:
    """Of a layer in one way."""
    return next(one for one in layer.costs if (one.way, one.batch) == (way, batch))


def summary(found: Found, batch: int) -> dict[str, Any]:
    """A network's numbers at one batch, all of its enlarging layers together; the layers one by one under ``layers``."""
    zero = [cost(layer, "zero-padded", batch) for layer in found.layers]
    xu = [cost(layer, "split", batch) for layer in found.layers]
    ours = [best(layer, batch) for layer in found.layers]
    cycles = {name: sum(one.cycles for one in costs) for name, costs in (("zero", zero), ("xu", xu), ("ours", ours))}
    energy = {name: sum(one.picojoules for one in costs) for name, costs in (("zero", zero), ("xu", xu), ("ours", ours))}
    written: dict[str, Any] = {"cycles_zero_padded": cycles["zero"], "cycles_split": cycles["xu"]}
    for way in OURS:
        written[f"cycles_{way}"] = sum(cost(layer, way, batch).cycles for layer in found.layers)
    rest, rest_energy = found.rest_cycles[str(batch)], found.rest_picojoules[str(batch)]
    written |= {
        "cycles_best": cycles["ours"],
        "speedup": cycles["zero"] / cycles["ours"],
        "speedup_xu": cycles["zero"] / cycles["xu"],
        "speedup_network": (cycles["zero"] + rest) / (cycles["ours"] + rest),
        "speedup_network_xu": (cycles["zero"] + rest) / (cycles["xu"] + rest),
        "cycles_rest": rest,
        "picojoules_zero_padded": energy["zero"],
        "picojoules_split": energy["xu"],
        "picojoules_best": energy["ours"],
        "energy_saved": 1 - energy["ours"] / energy["zero"],
        "energy_saved_xu": 1 - energy["xu"] / energy["zero"],
        "energy_saved_network": 1 - (energy["ours"] + rest_energy) / (energy["zero"] + rest_energy),
        "lost": lost(found.layers, ours),
        "lost_zero_padded": lost(found.layers, zero),
        "layers": [_layer(layer, batch) for layer in found.layers],
    }
    return written


def _layer(layer: Timing, batch: int) -> dict[str, Any]:
    costs = {one.way: one for one in layer.costs if one.batch == batch}
    chosen = best(layer, batch)
    return {
        "name": layer.name,
        "shape": layer.shape,
        "cycles": {way: one.cycles for way, one in costs.items()},
        "picojoules": {way: one.picojoules for way, one in costs.items()},
        "dram_bytes": {way: one.dram_bytes for way, one in costs.items()},
        "buffer_bytes": {way: one.buffer_bytes for way, one in costs.items()},
        "best": chosen.way,
        "speedup": costs["zero-padded"].cycles / chosen.cycles,
        "speedup_xu": costs["zero-padded"].cycles / costs["split"].cycles,
        "lost": lost([layer], [chosen]),
    }


def lost(layers: Sequence[Timing], costs: Sequence[Cost]) -> dict[str, float]:
    """Where the array's cycles go, shares of one: products that count, products with zeros, rows and columns that idle, and
    filling, in which tiles are loaded and the pipeline fills and drains."""
    cycles, array = sum(one.cycles for one in costs), Array()
    size = array.rows * array.columns * cycles
    useful = sum(one.batch * layer.macs["phases"] for layer, one in zip(layers, costs, strict=True)) / size
    done = sum(one.batch * layer.macs[one.way] for layer, one in zip(layers, costs, strict=True)) / size
    return {
        "useful": useful,
        "zeros": done - useful,
        "idle_rows": sum(one.idle_rows for one in costs) / cycles,
        "idle_columns": sum(one.idle_columns for one in costs) / cycles,
        "filling": sum(one.filling for one in costs) / cycles,
    }


def report(names: Sequence[str], found: Sequence[Found], agreed: Sequence[Agreement] | None) -> dict[str, Any]:
    """What goes into the JSON file."""
    written: dict[str, Any] = {}
    for place, (name, one) in enumerate(zip(names, found, strict=True)):
        written[name] = {
            "weights": WEIGHTS.get(name, "random"),
            "parameters": one.parameters,
            "macs": {way: sum(layer.macs[way] for layer in one.layers) for way in deconvolutions.WAYS},
            "macs_rest": one.rest_macs,
            "published": PUBLISHED.get(name),
            **{str(batch): summary(one, batch) for batch in BATCHES},
        }
        if agreed is not None:
            written[name]["equal"] = not agreed[place].wrong
            written[name]["checked"] = {"layers": agreed[place].layers, "outputs": agreed[place].outputs}
    six = [name for name in SIX if name in written]
    average = {}
    for batch in map(str, BATCHES):
        keys = ("speedup", "speedup_xu", "energy_saved", "energy_saved_xu")
        average[batch] = {key: sum(written[name][batch][key] for name in six) / len(six) for key in keys} if six else {}
    return {"networks": written, "average": {"over": six, **average}}


def tables(written: dict[str, Any]) -> str:
    """Speedups beside the paper's, energy, and where cycles are lost, as Markdown."""
    networks = written["networks"]
    speeds, energies, losses = [], [], []
    for name, one in networks.items():
        b1, b16 = one["1"], one["16"]
        given = "" if one["published"] is None else f"{one['published']:.2f}"
        both = [f"{b1[key]:.2f} / {b16[key]:.2f}" for key in ("speedup_xu", "speedup", "speedup_network")]
        kcycles = [f"{b16[key] / 1e3:.0f}" for key in ("cycles_zero_padded", "cycles_split", "cycles_phases", "cycles_merged")]
        speeds.append([name, *kcycles, f"{b16['cycles_best'] / 1e3:.0f}", *both, given])
        saved = [f"{b1[key]:.0%} / {b16[key]:.0%}" for key in ("energy_saved_xu", "energy_saved", "energy_saved_network")]
        microjoules = [f"{b16[key] / 16e6:.0f}" for key in ("picojoules_zero_padded", "picojoules_split", "picojoules_best")]
        energies.append([name, *microjoules, *saved])
        losses.append([name, *(f"{b1['lost'][key]:.0%} / {b16['lost'][key]:.0%}" for key in b1["lost"])])
    average = written["average"]
    if average["over"]:
        values = [f"{average['1'][key]:.2f} / {average['16'][key]:.2f}" for key in ("speedup_xu", "speedup")]
        published = [PUBLISHED[name] for name in average["over"]]
        speeds.append(["average of the paper's", *[""] * 5, *values, "", f"{sum(published) / len(published):.2f}"])
    head = ["network", "zero-padded", "split", "phases", "merged", "best", "Xu's split", "ours", "ours, network", "published"]
    spent = ["network", "zero-padded uJ", "split uJ", "ours uJ", "saved by Xu's", "saved by ours", "saved, network"]
    where = ["network", "useful", "zeros", "idle rows", "idle columns", "filling"]
    return "\n\n".join(
        [
            "Thousand cycles of 16 images, and speedups over zero-padding at batch 1 / 16:",
            style.markdown(head, speeds),
            "Energy of an image at batch 16, and what is saved of zero-padding's at batch 1 / 16:",
            style.markdown(spent, energies),
            "Where the cycles of ours go, batch 1 / 16:",
            style.markdown(where, losses),
        ]
    )


def finding(written: dict[str, Any]) -> str:
    """What was aimed at and what came of it."""
    slower = [
        f"{name} {layer['name']} at batch {batch}"
        for name, one in written["networks"].items()
        for batch in map(str, BATCHES)
        for layer in one[batch]["layers"]
        if layer["speedup"] < layer["speedup_xu"]
    ]
    lines = [f"Slower than Xu's split: {', '.join(slower) or 'no layer'}."]
    if written["average"]["over"]:
        reached = written["average"]["16"]["speedup"]
        over = style.over(written["average"]["over"])
        lines.append(f"Batch 16, {over}: {reached:.2f}, the aim is {AIM}: {'reached' if reached >= AIM else 'missed'}.")
    return " ".join(lines)


@style.styled
def draw(written: dict[str, Any], path: Path) -> None:
    """Speedups over zero-padding: a panel a batch, a group a network, the paper's published beside both ways."""
    names = list(written["networks"])
    drawn, rows = style.panels(len(BATCHES), 1, (max(6.0, 1.05 * len(names)), 5.6), same_y=True)
    for (axis,), batch in zip(rows, BATCHES, strict=True):
        values = {
            "Xu's split, published (EdgeTPU)": [written["networks"][name]["published"] for name in names],
            "Xu's split, here": [written["networks"][name][str(batch)]["speedup_xu"] for name in names],
            "ours": [written["networks"][name][str(batch)]["speedup"] for name in names],
        }
        for place, (label, heights) in enumerate(values.items()):
            at = [(group + (place - 1) * 0.27, height) for group, height in enumerate(heights) if height is not None]
            axis.bar([x for x, _ in at], [y for _, y in at], 0.26, label=label, **style.bar(place))
            for x, y in at:
                axis.text(x, 1.02 * y, f"{y:.1f}", ha="center", va="bottom", fontsize=6)
        axis.set_xticks(range(len(names)), [name.replace("fast_style_transfer", "fast style\ntransfer") for name in names])
        axis.set(title=f"batch {batch}", ylabel="speedup over zero-padding", yscale="log")
        axis.set_yticks([1, 2, 3, 4, 6, 8, 16], ["1", "2", "3", "4", "6", "8", "16"])
        axis.minorticks_off()
        axis.set_ylim(1, 20)
    style.legend(drawn, rows[0][0])
    path.parent.mkdir(parents=True, exist_ok=True)
    style.save(drawn, path)


def main() -> int:
    """Times, writes, draws and prints; 1 where --check found integers that differ."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_networks(parser, [*SIX, *OTHERS])
    parser.add_argument("--check", action="store_true", help="run all ways at full size and compare all integers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--out", type=Path, default=figure.OUT, metavar="FOLDER", help="for the figure [%(default)s]")
    runner.add_pool(parser)
    given = parser.parse_args()
    pool = runner.pool_of(given)
    cells = [Timed(network=name) for name in given.network]
    found = runner.run(deconvolutions.timed, cells, Found, shared=given.shared, reads=lambda _: (), pool=pool)
    agreed = None
    if given.check:
        checks = [Checked(network=name, weights=WEIGHTS.get(name)) for name in given.network]
        agreed = runner.run(
            deconvolutions.checked, checks, Agreement, shared=given.shared, reads=deconvolutions.reads, pool=pool
        )
    written = report(given.network, found, agreed)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(written, indent=1) + "\n")
    draw(written, given.out / "deconv_speed.png")
    print(f"{tables(written)}\n\n{finding(written)}\n")
    differing = [f"{name}: {text}" for name, one in zip(given.network, agreed or (), strict=False) for text in one.wrong]
    if agreed is not None:
        print("\n".join(differing) or f"All ways gave the same integers: {', '.join(given.network)}.")
    return 1 if differing else 0


if __name__ == "__main__":
    command.run(main)
