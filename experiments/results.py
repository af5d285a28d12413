"""The tables of docs/results.md, from what the other experiments left behind.

``python -m experiments.results --measured runs/figures --page docs/results.md`` fills the page: every part between a line
``<!-- NAME -->`` and the next ``<!-- end -->`` becomes the table of ``NAME.csv``, or, for ``recover``, of the files
``recover*.json``, and the rest stays as it is. So does a part of which nothing was measured: it is named at the end, with the
command that measures it.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Final

import msgspec

from experiments import ablation
from experiments.common import command, figure, style
from experiments.common.figure import Point
from experiments.common.retraining import Accuracy
from experiments.recover import Recovered

PART: Final = re.compile(r"(<!-- ([a-z0-9_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
VARIES: Final = {"fig8_batch": "batch", "fig10_epochs": "epochs", "ablation": "rate"}
"""What a figure of accuracies varies, where it is not the bit error rate."""
POINTS: Final = ("fig1_ber_sweep", "fig2_matching", "fig4_accuracy", "fig5_protection", *VARIES)


def filled(page: str, measured: Path) -> tuple[str, list[str]]:
    """The page with every part replaced that was measured, and the names of the others.

    Raises InputError where a file is not what the experiment writes.
    """
    left: list[str] = []

    def part(found: re.Match[str]) -> str:
        table = _part(found[2], measured)
        if table is None:
            left.append(found[2])
            return found[0]
        return f"{found[1]}\n{table}\n\n{found[3]}"

    return PART.sub(part, page), left


def _part(name: str, measured: Path) -> str | None:
    """A part's table, None where nothing was measured."""
    if name == "recover":
        return _recovered(sorted(measured.glob("recover*.json")))
    path = measured / f"{name}.csv"
    if not path.is_file():
        return None
    try:
        if name == "ablation":
            return ablation.table(points(path, VARIES[name]))
        if name in POINTS:
            return figure.table(points(path, VARIES.get(name, "ber")), VARIES.get(name, "ber"))
        with path.open(newline="") as file:
            head, *rows = csv.reader(file)
        return style.markdown(head, rows)
    except (KeyError, ValueError) as error:
        raise command.InputError(f"{path}: {error}; measure again with python -m experiments.{name}") from error


def points(path: Path, x: str) -> list[Point]:
    """What ``figure.write`` wrote."""
    with path.open(newline="") as file:
        return [
            Point(
                network=row["network"],
                method=row["method"],
                x=float(row[x]),
                ber=float(row["ber"]),
                metric=row["metric"],
                images=int(row["images"]),
                value=Accuracy(float(row["mean"]), float(row["std"]), int(row["n"])) if row["mean"] else None,
                iterations=int(row["iterations"]),
                overhead=float(row["overhead"]),
            )
            for row in csv.DictReader(file)
        ]


def _recovered(files: list[Path]) -> str | None:
    if not files:
        return None
    rows = []
    for path in files:
        try:
            one = msgspec.json.decode(path.read_bytes(), type=Recovered)
        except msgspec.MsgspecError as error:
            raise command.InputError(
                f"{path}: {error}; measure again with python -m experiments.recover --json {path}"
            ) from error
        won = "" if one.recovered is None else f"{100 * one.recovered:.0f} %"
        values = (f"{value.mean:.1f} ± {value.std:.1f}" for value in (one.clean, one.before, one.after))
        used = f"{one.overhead_used:.1f} %" if one.overhead else "0"
        size = (str(one.iterations), f"{one.bytes / 1e6:.1f}")
        rows.append([one.network, f"{one.ber:g}", used, f"{one.metric} of {one.images}", *values, str(one.after.n), won, *size])
    head = ["network", "BER", "overhead", "accuracy", "clean", "before", "after", "n", "recovered", "iterations", "MB"]
    return style.markdown(head, rows)


def main() -> None:
    """Fills the page."""
    parser = command.parser(__doc__)
    parser.add_argument("--measured", type=Path, default=figure.OUT, metavar="FOLDER", help="CSV and JSON files [%(default)s]")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"), help="page that is filled [%(default)s]")
    given = parser.parse_args()
    if not given.measured.is_dir():
        raise command.InputError(f"--measured {given.measured}: no such folder; make figures fills {figure.OUT}")
    page, left = filled(given.page.read_text("utf-8"), given.measured)
    given.page.write_text(page, "utf-8")
    print(f"{given.page}: filled from {given.measured}")
    for name in left:
        print(f"left as it was: {name}, of which nothing is there; python -m experiments.{name} measures it")


if __name__ == "__main__":
    command.run(main)
