"""What each step wins back, one row a step and each network a column, also where a step does harm.

``python -m experiments.ablation --shared ../shared`` writes ``ablation.csv`` and ``.png`` into --out and prints the table:
accuracy under faults, and in brackets the share of the loss that is won back, (step - signed) / (signed without faults -
signed). The first rows build up what ``r2f retrain`` does, the next leave one thing out of it or add one, the last protect
as well. All are evaluated under the same fault seeds on images that chose nothing; with ``--part selection`` on those that
may choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import structs

from experiments.common import command, figure, methods, runner, style
from experiments.common.cells import Cell, Part, Recipe
from experiments.common.figure import Point, Wanted, recipe

RATES: Final[dict[str, tuple[float, ...]]] = {
    "squeezenet1_1": (1e-4, 2e-4),
    "mobilenet_v2": (1e-4, 2e-4),
    "resnet20": (2e-4, 5e-4, 1e-3),
    "resnet56": (2e-4, 5e-4, 1e-3),
    "digits_cnn": (2e-3,),
}
"""Bit error rates at which each network is taken."""
SMALL_RATES: Final[dict[str, tuple[float, ...]]] = {"squeezenet1_1": (1e-4,), "resnet20": (5e-4,)}


class Step(NamedTuple):
    """A row. ``trained`` False leaves the network as it was quantised."""

    recipe: Recipe
    trained: bool = True
    budget: float = 0.0


FIRST: Final = "signed, not retrained"
STEPS: Final[dict[str, Step]] = {
    FIRST: Step(methods.BASE, trained=False),
    "signed, the paper's recipe": Step(methods.BASE + methods.PLAIN),
    "signed, our recipe": Step(methods.BASE + methods.OURS),
    "our arithmetic, not retrained": Step(methods.UNTRAINED, trained=False),
    "... the paper's recipe": Step(methods.UNTRAINED + methods.PLAIN),
    "... biases corrected alone": Step(methods.OURS + recipe(method="correct")),
    "... our recipe": Step(methods.OURS),
    "our recipe, labels of the device": Step(methods.OURS + recipe(labels="device")),
    "our recipe, no average of weights": Step(methods.OURS + recipe(average=0.0)),
    "our recipe, constant rate": Step(methods.OURS + recipe(schedule="constant", warmup=0.0)),
    "our recipe, biases not corrected": Step(methods.OURS + recipe(corrections=0)),
    "our recipe, images as they are": Step(methods.OURS + recipe(flip=False, shift=0)),
    "our recipe, half the gradient fault-free": Step(methods.OURS + recipe(**{"clean-gradient": 0.5})),
    "our recipe, 1.5 times the errors": Step(methods.OURS + recipe(**{"ber-factor": 1.5})),
    "our recipe, errors that rise": Step(methods.OURS + recipe(curriculum=0.5)),
    "our recipe, 20 % for protection": Step(methods.OURS, budget=0.2),
    "our recipe, 50 % for protection": Step(methods.OURS, budget=0.5),
}


def wanted(rates: dict[str, tuple[float, ...]], full: bool, seeds: int, part: Part) -> list[Wanted]:
    """Every cell; behind the first step's, the same without faults."""
    found = []
    for network, bers in rates.items():
        for ber in bers:
            for name, step in STEPS.items():
                cell = Cell(
                    network=network,
                    trained=ber if step.trained else None,
                    deployed=(ber,),
                    recipe=step.recipe + _rest(network, step, full),
                    budget=step.budget,
                    search="estimated",
                    part=part,
                    seeds=seeds,
                )
                found.append(Wanted(name, ber, cell))
                if name == FIRST:
                    found.append(Wanted(CLEAN, ber, structs.replace(cell, deployed=(0.0,))))
    return found


def _rest(network: str, step: Step, full: bool) -> Recipe:
    """What a step's settings are in addition on one network: the paper's recipe has a rate and a length of its own there."""
    if not step.trained or "method" in dict(step.recipe):
        return ()
    if methods.PLAIN[-1] in step.recipe:
        return recipe(lr=methods.PLAIN_RATES[network]) + methods.length(network, full=full)
    return methods.ours(network, full=full)[len(methods.OURS) :]


CLEAN: Final = "signed, no faults"


def recovered(points: Sequence[Point]) -> dict[tuple[str, float, str], float]:
    """(network, BER, step): share of the loss that the step wins back, where it did not diverge and something was lost."""
    by = {(p.network, p.x, p.method): p.value.mean for p in points if p.value is not None}
    result = {}
    for (network, ber, method), mean in by.items():
        clean, before = by[network, ber, CLEAN], by[network, ber, FIRST]
        if clean > before:
            result[network, ber, method] = (mean - before) / (clean - before)
    return result


def table(points: Sequence[Point]) -> str:
    """A row a step, a column a network and rate."""
    shares = recovered(points)
    by = {(p.network, p.x, p.method): p for p in points}
    columns = list(dict.fromkeys((p.network, p.x) for p in points))
    rows = []
    for method in figure.methods_of(points):
        cells = []
        for network, ber in columns:
            share = shares.get((network, ber, method))
            won = "" if share is None or method in (FIRST, CLEAN) else f" ({100 * share:.0f} %)"
            cells.append(figure.shown(by[network, ber, method]) + won)
        rows.append([method, *cells])
    return style.markdown(["step", *(f"{network} {ber:g}" for network, ber in columns)], rows)


@style.styled
def draw(points: Sequence[Point], path: Path) -> None:
    """A panel a network and rate, a bar a step."""
    columns = list(dict.fromkeys((p.network, p.x) for p in points))
    shown = [name for name in figure.methods_of(points) if name not in (FIRST, CLEAN)]
    shares = recovered(points)
    made, (axes,) = style.panels(1, len(columns), (3 + 2.1 * len(columns), 0.8 + 0.28 * len(shown)), same_y=True)
    for axis, (network, ber) in zip(axes, columns, strict=True):
        for row, method in enumerate(shown):
            share = shares.get((network, ber, method))
            if share is None:
                axis.text(0, row, "X", va="center")
                continue
            axis.barh(row, 100 * share, color="#7a7a7a" if share >= 0 else "white", edgecolor="black", linewidth=0.6)
        axis.axvline(100, color="grey", linewidth=0.8)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=f"{network}\nBER {ber:g}", xlabel="won back, %")
    axes[0].set_yticks(range(len(shown)), shown)
    axes[0].invert_yaxis()
    style.save(made, path)


def main() -> None:
    """Measures, writes, draws and prints."""
    parser = figure.parser(__doc__)
    parser.add_argument("--part", choices=("report", "selection"), default="report", help="images [%(default)s]")
    given = parser.parse_args()
    rates = RATES if given.full else SMALL_RATES
    if given.network:
        rates = {name: rates.get(name, RATES[name]) for name in given.network}
    todo = wanted(rates, given.full, given.seeds, given.part)
    points = figure.measure(todo, given.shared, runner.pool_of(given))
    figure.write(points, given.out / "ablation.csv", "rate")
    draw(points, given.out / "ablation.png")
    print(table(points) + "\n")


if __name__ == "__main__":
    command.run(main)
