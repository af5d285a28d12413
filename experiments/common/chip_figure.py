"""The pictures of ``experiments.reduce``: accuracy by rate and epochs, epochs a chip, total cost against the fixed policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from experiments.common import style
from experiments.common.chip_policies import NONE, Reduced


@style.styled
def draw(found: Sequence[Reduced], path: Path) -> None:
    """A row a network, three panels a row."""
    drawn, rows = style.panels(len(found), 3, (13.5, 3.6 * len(found)))
    for (accuracy, chips, cost), one in zip(rows, found, strict=True):
        resilience(accuracy, one)
        each_chip(chips, one)
        total(cost, one)
    style.save(drawn, path)


def resilience(axes: Axes, found: Reduced) -> None:
    """A curve an amount: mean accuracy of the table's chips by rate, the worst chip as the error bar's end."""
    amounts = sorted({cell.iterations for cell in found.cells})
    shown = amounts if len(amounts) <= 5 else [amounts[i * (len(amounts) - 1) // 4] for i in range(5)]
    for place, amount in enumerate(shown):
        own = [cell for cell in found.cells if cell.iterations == amount]
        x, mean = [100 * cell.rate for cell in own], [cell.mean for cell in own]
        down = [cell.mean - cell.worst for cell in own]
        label = f"{amount / found.an_epoch:.3g}"
        axes.errorbar(
            x, mean, [down, [0.0] * len(own)], label=label, capsize=2, linewidth=1.2, markersize=4, **style.line(place)
        )
    target = found.chosen_clean - found.lost  # the table is of the images that choose
    axes.set_ylim(max(0.0, target - 35), found.chosen_clean + 2)
    axes.axhline(found.chosen_clean, color="grey", linewidth=0.8)
    axes.axhline(target, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="faulty elements, %", ylabel="top-1, %", title=f"{_of(found)}: mean, down to the worst chip")
    axes.legend(title="epochs (lines: fault-free, target)", title_fontsize=7, fontsize=8, loc="lower left")
    axes.grid(alpha=0.3)


def _of(found: Reduced) -> str:
    return f"{found.network}{', mapped' if found.mapping else ''}"


def each_chip(axes: Axes, found: Reduced) -> None:
    """Epochs that each policy gives each chip, by its rate; an x on the axis where it is named beyond help."""
    for place, policy in enumerate(p for p in found.policies if p.name != NONE):
        look = style.line(place) | {"linestyle": ""}
        aside = 0.06 * (place - 2.5)  # so that marks of one amount lie side by side
        pairs = zip(found.rates, policy.amounts, strict=True)
        given = [(100 * rate + aside, n / found.an_epoch) for rate, n in pairs if n is not None]
        x, y = zip(*given, strict=True) if given else ((), ())
        axes.plot(x, y, label=policy.name, markersize=4, alpha=0.75, fillstyle="none", **look)
        beyond = [100 * rate for rate, n in zip(found.rates, policy.amounts, strict=True) if n is None]
        axes.plot(beyond, [0.02 + 0.02 * place] * len(beyond), "x", color=look["color"], transform=axes.get_xaxis_transform())
    axes.set(xlabel="faulty elements, %", ylabel="epochs", title=f"Epochs a chip, {len(found.rates)} chips")
    axes.set_ylim(0, 1.4 * max([1, found.fixed]) / found.an_epoch)  # the legend has the upper part
    axes.legend(fontsize=8, ncols=2, loc="upper left")
    axes.grid(alpha=0.3)


def total(axes: Axes, found: Reduced) -> None:
    """Total epochs of each policy as a share of the fixed one's; above a bar, how many chips are at the target."""
    shown = [policy for policy in found.policies if policy.name != NONE]
    for place, policy in enumerate(shown):
        axes.bar(place, 100 * policy.share_of_fixed, 0.7, **style.bar(place))
        said = f"{100 * policy.share_of_fixed:.0f} %\n{policy.reached}/{len(found.rates)}"
        axes.text(place, 100 * policy.share_of_fixed + 2, said, ha="center", va="bottom", fontsize=8)
    none = next(policy for policy in found.policies if policy.name == NONE)
    axes.set_xticks(range(len(shown)), [policy.name.replace(" ", "\n") for policy in shown], fontsize=8)
    axes.set_ylim(0, 125)
    axes.set(ylabel="epochs, % of fixed, not mapped" if found.mapping else "epochs, % of fixed")
    axes.set_title(f"Cost, and chips at {found.target:.1f} % (unretrained: {none.reached})")
