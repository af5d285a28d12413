"""What a fleet came to: one table, as CSV, as Parquet and in a terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final

from rich.table import Table as Grid
from rich.text import Text

from accelsim.files import write_whole
from r2f.reduce.course import Course
from r2f.reduce.fleet.plan import Plan
from r2f.reduce.fleet.retrain import Fleet, at_target
from r2f.settings import SettingsError

CSV: Final = "results.csv"
PARQUET: Final = "results.parquet"
SHOWN: Final = 40
"""Chips that a terminal is shown; the files have all."""
COLUMNS: Final[dict[str, type]] = {
    "name": str, "file": str, "chip": str, "rate": float, "state": str, "planned": int, "iterations": int, "epochs": float,
    "before": float, "after": float, "error": float, "damage": float, "seconds": float, "sha256": str, "why": str,
}  # fmt: skip
"""Of the table: name and type. ``state`` is reached, in doubt (at the target on the images that chose, not surely on
others), missed, beyond help, failed or to do; ``planned`` are iterations, as ``iterations``, which were given; ``before``,
``after`` and its ``error`` are per cent; ``seconds`` are processor time."""

Row = dict[str, Any]


def rows(fleet: Fleet) -> list[Row]:
    """A row a chip, in the plan's order; None where there is nothing."""
    plan, found = fleet.plan, []
    for one in plan.chips:
        row: Row = dict.fromkeys(COLUMNS)
        row |= {"name": one.name, "file": one.file, "chip": one.chip, "rate": one.rate, "planned": one.iterations}
        row |= {"state": "beyond help" if one.iterations is None else "to do", "why": one.why}
        if (done := fleet.done.get(one.name)) is not None:
            first, last = done.course.points[0], done.course.points[-1]
            row |= {
                "state": state(plan, done.course),
                "iterations": done.iterations, "epochs": done.iterations / plan.an_epoch, "before": first.accuracy,
                "after": last.accuracy, "error": last.error, "damage": done.course.damage, "seconds": done.course.seconds,
                "sha256": done.sha256,
            }  # fmt: skip
        elif one.name in fleet.failed:
            row |= {"state": "failed", "why": fleet.failed[one.name]}
        found.append(row)
    return found


def state(plan: Plan, course: Course) -> str:
    """What became of a chip that was retrained, as ``COLUMNS`` has it."""
    if at_target(plan, course):
        return "reached"
    return "in doubt" if course.points[-1].accuracy >= plan.target else "missed"


def check_parquet() -> bool:
    """Whether Parquet can be written."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return False
    return True


def demand_parquet() -> None:
    """Raises SettingsError where Parquet cannot be written."""
    if not check_parquet():
        raise SettingsError("--parquet needs the package pyarrow: pip install 'r2f[parquet]'; without it there is the CSV")


def write_csv(path: Path, found: list[Row]) -> None:
    """The table as CSV, empty where there is nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_whole(path, text.getvalue().encode())


def write_parquet(path: Path, found: list[Row], plan: Plan) -> None:
    """The table as Parquet, null where there is nothing; what the fleet was planned for is in the schema's metadata."""
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
    about = {
        "network": plan.network,
        "sha256": plan.sha256,
        "policy": plan.policy,
        "target": f"{plan.target:g}",
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()], metadata=about)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found, schema), sink)
    write_whole(path, sink.getvalue().to_pybytes())


def planned_grid(plan: Plan) -> Grid:
    """A plan for a terminal."""
    grid = Grid(title=Text(_title(plan)), title_justify="left", box=None, pad_edge=False)
    grid.add_column("chip", overflow="fold")
    for name in ("faulty", "iterations"):
        grid.add_column(name, justify="right")
    grid.add_column("why", overflow="fold")
    for one in plan.chips[:SHOWN]:
        amount = "none" if one.iterations is None else f"{'up to ' if plan.until and one.iterations else ''}{one.iterations}"
        grid.add_row(Text(one.name), f"{100 * one.rate:.2f} %", amount, Text(one.why))
    return grid


def planned_summary(plan: Plan) -> str:
    """What a plan comes to, in a line."""
    given = [one.iterations for one in plan.chips if one.iterations is not None]
    most = "at most " if plan.until else ""
    return f"{_more(plan)}{_cost(plan, sum(given), len(given), most)}; {len(plan.chips) - len(given)} beyond help"


def grid(plan: Plan, found: list[Row]) -> Grid:
    """The results for a terminal."""
    made = Grid(title=Text(_title(plan)), title_justify="left", box=None, pad_edge=False)
    made.add_column("chip", overflow="fold")
    for name in ("faulty", "iterations", "before", "after"):
        made.add_column(name, justify="right")
    made.add_column("", overflow="fold")
    for row in found[:SHOWN]:
        numbers = ("" if row[name] is None else f"{row[name]:.1f} %" for name in ("before", "after"))
        iterations = "" if row["iterations"] is None else str(row["iterations"])
        said = {
            "beyond help": f"beyond help: {row['why']}",
            "failed": f"failed: {row['why']}",
            "in doubt": "in doubt: at the target on these images, not surely on others",
        }.get(str(row["state"]), str(row["state"]))
        made.add_row(Text(row["name"]), f"{100 * row['rate']:.2f} %", iterations, *numbers, Text(said))
    return made


def summary(fleet: Fleet) -> str:
    """What a fleet came to, in a line."""
    spent = sum(one.iterations for one in fleet.done.values())
    beyond = sum(one.iterations is None for one in fleet.plan.chips)
    doubt = sum(state(fleet.plan, one.course) == "in doubt" for one in fleet.done.values())
    said = (
        f"{_more(fleet.plan)}{_cost(fleet.plan, spent, len(fleet.done))}; {fleet.reached} at the target"
        f"{f', {doubt} in doubt' if doubt else ''}, {beyond} beyond help"
    )
    return said + (f", {len(fleet.failed)} failed" if fleet.failed else "")


def _cost(plan: Plan, iterations: int, count: int, most: str = "") -> str:
    said = f"{count} chips, {most}{iterations} iterations in all, {iterations / plan.an_epoch:.3g} epochs"
    if plan.fixed:
        said += f", {100 * iterations / (plan.fixed * len(plan.chips)):.0f} % of {plan.fixed} for each of {len(plan.chips)}"
    return said


def _title(plan: Plan) -> str:
    mapped = ", channels mapped" if plan.mapping else ""
    what = f"{plan.network} on {plan.rows}x{plan.columns} arrays{mapped}"
    return f"{what}: {plan.policy}, target {plan.target:g} %, fault-free {plan.clean:.1f} %"


def _more(plan: Plan) -> str:
    more = len(plan.chips) - SHOWN
    return f"... and {more} more chips\n" if more > 0 else ""
