"""``r2f fleet plan`` and ``r2f fleet retrain``. Imports what a command needs when it runs."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from r2f import settings as settings_file
from r2f.command_line import guarded, options
from r2f.reduce.fleet.words import SETTINGS, Policy

app = typer.Typer(
    no_args_is_help=True,
    help="Give each chip of a fleet just the retraining it needs: plan, then retrain, here or on a cluster (docs/reduce.md).",
)

WHERE = "Where it runs"
Jobs = Annotated[int | None, typer.Option(min=1, max=4096, rich_help_panel=WHERE, help="Chips at a time, a core each.")]
Dask = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", rich_help_panel=WHERE, help="On the Dask cluster of this scheduler: tcp://10.0.0.1:8786."),
]
Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", rich_help_panel=WHERE, help="On the Ray cluster of this address: auto, or 10.0.0.1:6379."),
]


@app.command("plan")
@options(*SETTINGS)
def plan_command(
    given: dict[str, Any],
    chips: Annotated[list[Path], typer.Argument(help="Folders of chip files (*.json, docs/chips.md), or the files.")],
    target: Annotated[str, typer.Option(help="Top-1 in per cent that each chip is to reach.")],
    resilience: Annotated[Path, typer.Option(help="The network's table by r2f resilience.")] = Path("resilience.json"),
    policy: Annotated[
        Policy,
        typer.Option(help="What a chip's amount is read off: its fault rate, what of the saliency its map takes, its accuracy "
                     "behind bias correction, none (fixed); until-met stops there, too, once the target is met."),
    ] = "by-rate",
    jobs: Jobs = None,
    dask: Dask = None,
    ray: Ray = None,
    out: Annotated[Path, typer.Option(help="The plan; the int8 network goes beside it, as .safetensors.")] = Path("plan.json"),
) -> None:  # fmt: skip
    """Say for each chip how much retraining it is given, or that it is beyond help and why.

    How chips are retrained, and by which images they are judged, is as in the resilience table.
    """

    def work() -> None:
        from rich.console import Console
        from rich.text import Text

        from r2f.display import Display
        from r2f.reduce.fleet import plan, results
        from r2f.reduce.resilience import per_cent

        wanted = per_cent(target, "--target")
        settings = settings_file.parse(given)
        if out.suffix != ".json":
            raise settings_file.SettingsError(f"--out {out}: a plan's name ends in .json")
        console = Console()
        with Display(console) as display:
            made = plan.planned(chips, settings, resilience, policy, wanted, _pool(jobs, dask, ray), out, display)
        console.print(results.planned_grid(made))
        console.print(Text(f"{results.planned_summary(made)}\n"))
        console.print(f"{out}; retrain with: r2f fleet retrain {shlex.quote(str(out))}", soft_wrap=True, markup=False)

    guarded(work)


@app.command("retrain")
def retrain_command(
    plan: Annotated[Path, typer.Argument(help="Of r2f fleet plan.")],
    jobs: Jobs = None,
    dask: Dask = None,
    ray: Ray = None,
    parquet: Annotated[
        bool | None,
        typer.Option("--parquet/--no-parquet", show_default=False, help="The table as Parquet, too; where pyarrow is there."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results; the same command goes on with what is there.")] = Path("fleet"),
) -> None:
    """Retrain each chip of a plan by its amount, one job a chip: a model and a result each, one table, one page of plots.

    A command that was stopped, or whose workers died, goes on where it was.
    """

    def work() -> None:
        from rich.console import Console
        from rich.text import Text

        from r2f.display import Display
        from r2f.reduce.fleet import picture, results
        from r2f.reduce.fleet.retrain import CHIPS, retrained

        if parquet:
            results.demand_parquet()
        console = Console()
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            with Display(console) as display:
                fleet = retrained(plan, out, _pool(jobs, dask, ray), display)
        except BaseException:
            if (out / CHIPS).is_dir():
                kept = sum(1 for _ in (out / CHIPS).glob("*.json"))
                where = (("--jobs", jobs), ("--dask", dask), ("--ray", ray))
                words = ["r2f", "fleet", "retrain", str(plan), "--out", str(out)]
                words += [str(word) for option in where if option[1] is not None for word in option]
                print(f"stopped; chips done and kept in {out}: {kept}; go on with: {shlex.join(words)}", file=sys.stderr)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        rows = results.rows(fleet)
        files = [results.CSV, picture.PICTURE]
        results.write_csv(out / results.CSV, rows)
        if parquet is not False and results.check_parquet():
            results.write_parquet(out / results.PARQUET, rows, fleet.plan)
            files.insert(1, results.PARQUET)
        picture.draw(fleet.plan, rows, out / picture.PICTURE)
        console.print(results.grid(fleet.plan, rows))
        console.print(Text(f"{results.summary(fleet)}\n"))
        console.print(f"{out}: {', '.join(files)}, {CHIPS}/", soft_wrap=True, markup=False)
        if parquet is None and results.PARQUET not in files:
            console.print("results.parquet was left out: pip install 'r2f[parquet]'", markup=False, highlight=False)
        if fleet.failed:
            print(f"r2f: {len(fleet.failed)} of {len(rows)} chips failed; the same command tries them again", file=sys.stderr)
            raise typer.Exit(1)

    guarded(work)


def _pool(jobs: int | None, dask: str | None, ray: str | None) -> Any:
    from r2f.pool import Pool

    named = [f"--{name}" for name, value in (("jobs", jobs), ("dask", dask), ("ray", ray)) if value is not None]
    if len(named) > 1:
        raise settings_file.SettingsError(f"{' and '.join(named)} exclude one another: give one")
    return Pool(jobs or 1, dask, ray)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt
