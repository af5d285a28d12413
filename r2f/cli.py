"""``r2f``: retrain a network with the faulty device in the loop, and watch it. Imports what a command needs when it runs."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from r2f import settings as settings_file
from r2f.command_line import guarded, options
from r2f.models import commands as models
from r2f.protection.words import SETTINGS, Cost, Grain, Search
from r2f.provision import app as provision_app
from r2f.reduce.fleet.commands import app as fleet_app
from r2f.reduce.words import AMOUNTS, RATES
from r2f.reduce.words import SETTINGS as CHIP_SETTINGS
from r2f.settings import OPTIONS
from services.passwords import PasswordFile, no_password

if TYPE_CHECKING:
    from r2f.devices.report import FleetReport
    from r2f.display import Display
    from r2f.report import Report

Level = Literal["debug", "info", "warning", "error"]
RUNS = Path("runs")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Retrain int8 networks with the faulty device's own errors in the loop, over MQTT.",
)

Out = Annotated[Path, typer.Option(help="Where run folders go.", rich_help_panel="Run")]
LogLevel = Annotated[
    Level,
    typer.Option(
        metavar="LEVEL", envvar="R2F_LOG_LEVEL", rich_help_panel="Run",
        help="What the services write to the run's logs: debug, info, warning or error.",
    ),
]  # fmt: skip

DEMO = {"ber": 2e-3, "iterations": 240, "batch": 32, "embedded": True, "baseline": True}
"""What the demo sets otherwise than ``r2f retrain`` does."""


app.add_typer(fleet_app, name="fleet")
app.add_typer(provision_app, name="provision")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
    password_file: PasswordFile = None,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"r2f {installed('r2f')}")
        raise typer.Exit


@app.command()
@options("iterations", "broker", "trainer", "seed", "watch", "watch-port", "tensorboard", defaults=DEMO)
def demo(
    given: dict[str, Any],
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page of --watch in a browser.")] = True,
    out: Out = RUNS,
    log_level: LogLevel = "info",
) -> None:
    """Real digits, a small CNN, a device with bit errors, the whole pipeline; a table and plots at the end."""
    guarded(lambda: _new(DEMO | given, None, out, log_level, browser=browser))


@app.command()
@options(*OPTIONS)
def retrain(
    given: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option(help="Settings from a file such as a run's run.toml; options given beside it win.", rich_help_panel="Run"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run's folder; its settings are its own.", rich_help_panel="Run")
    ] = None,
    out: Out = RUNS,
    log_level: LogLevel = "info",
) -> None:
    """Retrain a network on a device that makes errors: forward pass there, backward pass here, int8 model back."""
    if resume is None:
        guarded(lambda: _new(given, config, out, log_level))
        return
    broker = given.pop("broker", None)  # perhaps of the environment, and with the password, which no run keeps
    if given or config is not None:
        named = "--config" if config is not None else f"--{next(iter(given))}"
        raise typer.BadParameter(f"a run that is resumed keeps its settings; leave out {named}", param_hint="--resume")
    guarded(lambda: _resume(resume, broker, log_level))


@app.command()
@options("network", "weights", "data", "image-size", "mean", "std", "classes")
def layers(
    given: dict[str, Any],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The network, as --network; weights are random without --weights.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="List the network of this run's folder.", rich_help_panel="Run")] = None,
) -> None:
    """List a network's layers: the indices that --protect takes, shapes, and multiplications."""

    def work() -> None:
        from rich.console import Console

        from r2f import layers as listing

        Console().print(listing.asked(name, run, given))

    guarded(work)


@app.command()
@options(*SETTINGS)
def protect(
    given: dict[str, Any],
    budget: Annotated[
        str, typer.Option(help="What protection may add, in per cent of the network's cycles; several with commas.")
    ] = "20%,50%,200%",
    search: Annotated[Search, typer.Option(help="By estimates that are then checked, or Algorithm 1.")] = "estimated",
    units: Annotated[
        Grain, typer.Option(help="Protect layers (TMR), or also a layer's tensors by voters at the ports: sites.")
    ] = "layers",
    cost: Annotated[Cost, typer.Option(help="What a layer costs: modelled cycles, or multiplications.")] = "cycles",
    uncertain: Annotated[
        bool, typer.Option("--uncertain/--no-uncertain", help="Allow images to run again whose answer is uncertain.")
    ] = True,
    images: Annotated[int, typer.Option(min=1, help="Training images, not calibrated on, by which to choose.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="Fault seeds of each evaluation.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Images that the deployed device runs at once.")] = 16,
    quantise_for: Annotated[
        str | None,
        typer.Option(
            help="Shares of the error rates to quantise for, with commas; the best for each budget is kept "
            r"\[default: 100%,50%,25%; with Algorithm 1 100%]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=r"Folder for plan.json and all else \[default: protection/NETWORK]"),
    ] = None,
) -> None:
    """Choose what to protect from faults within a budget of cycles; r2f retrain --protect plan.json retrains with it.

    A search that was stopped goes on with the same command.
    """

    def work() -> None:
        from rich.console import Console

        from r2f.display import Display
        from r2f.protection import command

        settings = settings_file.parse(given)
        asked = command.Asked(
            budget=budget, search=search, units=units, cost=cost, uncertain=uncertain, images=images, seeds=seeds, batch=batch,
            quantise_for=quantise_for,
        )  # fmt: skip
        console = Console()
        with Display(console) as display:
            plan, folder = command.protect(settings, asked, out or Path("protection") / settings.network, display)
        console.print(command.table(plan))
        console.print(f"\n{folder}: plan.json, sensitivities.png, evaluations.jsonl", soft_wrap=True, markup=False)

    guarded(work)


DIAGNOSIS = (
    "fault-map", "random-faults", "chip-seed", "ber", "ber-input", "ber-weight", "ber-output", "ber-accumulator", "fault-model",
    "accelerator", "modules", "array", "device", "device-memory-mb", "data", "seed", "broker", "launch", "embedded",
)  # fmt: skip
"""Settings of ``r2f diagnose``."""


@app.command()
@options(*DIAGNOSIS, defaults={"ber": 0.0})
def diagnose(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The chip file that is written; there must be none yet.")] = Path("found.json"),
    repeat: Annotated[
        int | None, typer.Option(min=1, max=99, help="Runs of each test that are voted on; 1 without soft errors, else 5.")
    ] = None,
) -> None:
    """Find a device's permanent faults over the bus by test networks, and write them as a chip file (docs/chips.md)."""

    def work() -> None:
        from rich.console import Console

        from r2f.diagnosis import command
        from r2f.display import Display

        console = Console()
        with Display(console) as display:
            found = command.diagnose(settings_file.parse({"ber": 0.0} | given), out, repeat, display)
        console.print(command.table(found))
        console.print(f"\n{out}", soft_wrap=True, markup=False)

    guarded(work)


@app.command()
@options(*CHIP_SETTINGS, defaults={"ber": 0.0})
def resilience(
    given: dict[str, Any],
    rates: Annotated[str, typer.Option(help="Shares of faulty processing elements, several with commas.")] = RATES,
    maps_per_rate: Annotated[int, typer.Option(min=1, max=10_000, help="Random chips of each rate.")] = 4,
    amounts: Annotated[
        str, typer.Option(help="Amounts of retraining, with commas: iterations, or epochs with an e, as 0.5e.")
    ] = AMOUNTS,
    target: Annotated[
        str | None,
        typer.Option(help=r"Accuracies in per cent whose amounts are shown \[default: 2, 4 and 6 points below fault-free]"),
    ] = None,
    mapping: Annotated[
        bool, typer.Option("--mapping/--no-mapping", help="Order channels so that least of importance lies on faults.")
    ] = False,
    chip_seed: Annotated[int, typer.Option(min=0, help="Seed of the first random chip of each rate.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, max=4096, help="Chips at a time, a process each.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help=r"Folder for resilience.json and all else \[default: resilience/NETWORK]")
    ] = None,
) -> None:
    """Measure accuracy by the share of faulty elements and the amount of retraining, with random chips (docs/reduce.md).

    A measurement that was stopped goes on with the same command.
    """

    def work() -> None:
        from rich.console import Console

        from r2f.display import Display
        from r2f.reduce import picture
        from r2f.reduce import resilience as measuring

        settings = settings_file.parse({"ber": 0.0} | given)
        asked = measuring.Asked(
            rates=tuple(measuring.share(text, "--rates") for text in rates.split(",")), maps=maps_per_rate,
            amounts=tuple(text.strip() for text in amounts.split(",")), mapping=mapping, chip_seed=chip_seed, jobs=jobs,
        )  # fmt: skip
        wanted = [] if target is None else [measuring.per_cent(text, "--target") for text in target.split(",")]
        folder = out or Path("resilience") / settings.network.replace(":", ".")
        console = Console()
        with Display(console) as display:
            table = measuring.measure(settings, asked, folder, display)
        targets = picture.targets_of(table, wanted)
        picture.draw(table, targets, folder / picture.PICTURE)
        console.print(picture.rows(table, targets))
        console.print(f"\n{folder}: resilience.json, resilience.png, courses.jsonl", soft_wrap=True, markup=False)

    guarded(work)


@app.command()
def runs(out: Annotated[Path, typer.Argument(help="Where run folders are.")] = RUNS) -> None:
    """List the runs below a folder: network, BER, iterations, metric of the faulty device before and after, state."""

    def work() -> None:
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        from r2f import folders
        from services.metric import written
        from services.shown import plain

        found = folders.all_runs(out)
        name = Column("run", overflow="fold", min_width=max((len(one.folder.name) for one in found), default=0))
        table = Table(name, "network", "BER", "done", "before", "after", "state", box=None, pad_edge=False)
        for one in found:
            what = one.settings
            rates = () if what is None else (what.rates.input, what.rates.weight, what.rates.accumulator, what.rates.output)
            table.add_row(
                Text(one.folder.name), Text("" if what is None else what.network), f"{max(rates):g}" if rates else "",
                "" if what is None else f"{one.iterations}/{'?' if one.total is None else one.total}",
                *("" if value is None else written(one.metric, value) for value in (one.before, one.after)), one.state,
            )  # fmt: skip
        console = Console()
        console.print(table if found else f"no runs below {out}")
        for one in found:
            if one.why:
                console.print(Text(plain(f"{one.folder.name}: {one.why}")), soft_wrap=True)

    guarded(work)


@app.command("stop")
def stop_command(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help=r"Folder of the run \[default: the newest that is going on]")
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(envvar="R2F_BROKER", callback=no_password, help=r"mqtt://[user@]host:port \[default: that of the run]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run folders are looked for.")] = RUNS,
    by: Annotated[str | None, typer.Option(help=r"Who asks, as the run will say \[default: user@host]")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the run has ended.")] = True,
) -> None:
    """Stop a run after the iteration that is under way. Its checkpoint stays; r2f retrain --resume goes on with it."""

    def work() -> None:
        from r2f import stopping

        stopped = stopping.stop(run, out, broker, by, lambda said: print(said, flush=True), wait=wait)
        if not stopped:
            print("the run was done before it could be stopped")
        elif wait:
            print("stopped")

    guarded(work)


@app.command("tap")
def tap_command(
    given: typer.Context,
    pattern: Annotated[str, typer.Argument(help="Topics, short ('event/#') or whole ('r2f/v1/+/up/#').")] = "event/#",
    broker: Annotated[
        str | None,
        typer.Option(
            envvar="R2F_BROKER", callback=no_password, help=r"mqtt://host:port \[default: that of the newest running run]"
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run whose broker is tapped.")] = None,
    out: Annotated[Path, typer.Option(help="Where run folders are looked for.")] = RUNS,
    device: Annotated[
        str | None, typer.Option(envvar="R2F_DEVICE", help=r"Name of the device \[default: the run's, else edge-0]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    count: Annotated[int, typer.Option(min=0, help="Stop after so many messages; 0 never.")] = 0,
) -> None:
    """Print decoded messages, one a line, for as long as you like. It costs the pipeline nothing."""

    def work() -> None:
        import asyncio

        from r2f import folders, tap

        source = given.get_parameter_source("broker")
        if run is not None and source is not None and source.name == "COMMANDLINE":
            raise ValueError("--run: has a broker of its own; leave out --broker, or --run")
        if broker is not None and run is None:
            asyncio.run(tap.tap(pattern, broker, device or "edge-0", as_json=as_json, count=count))
            return
        folder = run or folders.newest_running(out, ", or name a broker with --broker mqtt://host:port")
        asyncio.run(tap.tap_run(pattern, folder, device, as_json=as_json, count=count))

    guarded(work)


@app.command("conform")
def conform_command(
    role: Annotated[Literal["agent", "voter", "codec"], typer.Option(help="What the program is; a codec: the device's.")],
    broker: Annotated[
        str,
        typer.Option(
            envvar="R2F_BROKER", callback=no_password, help="mqtt://host:port, where nothing else of the device runs."
        ),
    ],
    device: Annotated[str, typer.Option(envvar="R2F_DEVICE", help="Name of the device that the program serves.")] = "edge-0",
    within: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds that an answer may take.")] = 5.0,
    image_size: Annotated[str, typer.Option(help="HxWxC of an agent's images, 8x8 at least.")] = "8x8x1",
    steps: Annotated[int, typer.Option(min=0, max=255, help="By how much an agent's integers may differ from ours.")] = 0,
) -> None:
    """Put a program of somebody else to the contract of its role, a verdict a line; exit code 1 where one fails."""

    def work() -> None:
        import asyncio

        from r2f.conform.command import conform, size_of
        from services.shown import plain

        def say(verdict: object) -> None:
            print(plain(str(verdict)), flush=True)

        if not asyncio.run(conform(broker, device, role, within, size_of(image_size), steps, say)):
            raise typer.Exit(1)

    guarded(work)


@app.command()
def view(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or going on; one or several.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = 8100,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")] = True,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's event files into the folders instead, and end.")
    ] = False,
) -> None:
    """Show runs on a page, as while they went on: docs/watching.md. One that goes on is followed."""

    def work() -> None:
        from r2f import folders, watch

        if tensorboard:
            from r2f import tensorboard as boards

            for one in run:
                for written in boards.write(one):
                    print(written)
            return
        going = [one for one in run if folders.is_running(one)]
        broker = folders.broker_of(going[-1])[0] if going else None
        watch.view(run, broker, host, port, browser=browser)

    guarded(work)


@app.command()
def doctor() -> None:
    """What this machine offers: engine paths and why, brokers, shared memory, networks."""

    def work() -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from r2f.doctor import rows

        first = "the first time, their kernels are compiled for this machine, which takes a minute or two"
        Console(stderr=True).print(f"trying the engine's paths; {first}")
        table = Table("what", "state", "why", title="r2f doctor", title_justify="left")
        for row in rows():
            table.add_row(*map(Text, row))
        Console().print(table)

    guarded(work)


def _new(given: dict[str, Any], config: Path | None, out: Path, log_level: Level, *, browser: bool = False) -> None:
    from r2f import folders, run

    settings = settings_file.parse(given, None if config is None else settings_file.read(config))
    with folders.new(out, settings.network) as folder:
        _shown(folder, log_level, lambda display: run.start(settings, folder, display), browser=browser)


def _resume(folder: Path, broker: str | None, log_level: Level) -> None:
    from r2f import run

    run.read_settings(folder)
    _shown(folder, log_level, lambda display: run.go_on(folder, display, broker))


def _shown(
    folder: Path, log_level: Level, work: Callable[[Display], Report | FleetReport], *, browser: bool = False
) -> None:  # fmt: skip
    from rich.console import Console

    from r2f import folders
    from r2f.devices import report as of_devices
    from r2f.display import Display
    from r2f.errors import first
    from r2f.tables import table

    os.environ["R2F_LOG_LEVEL"] = log_level
    console = Console()
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with Display(console, browser=browser) as display:
            report = work(display)
    except BaseException as error:
        if not (folder / settings_file.FILE).exists():
            if isinstance(first(error), KeyboardInterrupt):
                print("stopped while the run was being prepared; nothing of it is kept", file=sys.stderr)
        elif not folders.is_running(folder):
            print(f"stopped; go on with: r2f retrain --resume {shlex.quote(str(folder.absolute()))}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if isinstance(report, of_devices.FleetReport):
        console.print(of_devices.table(report))
        console.print(f"\n{folder}: report.json, logs/, and a folder for each device", soft_wrap=True, markup=False)
        if report.given_up:
            again = f"go on with: r2f retrain --resume {shlex.quote(str(folder.absolute()))}"
            print(f"r2f: {len(report.given_up)} of {len(report.devices)} devices gave up; {again}", file=sys.stderr)
            raise typer.Exit(1)
        return
    console.print(table(report))
    shown = f"{report.sheet}, " if report.sheet else ""
    console.print(f"\n{folder}: report.json, summary.png, {shown}retrained.safetensors, logs/", soft_wrap=True, markup=False)


def _stop(*_: object) -> None:
    """Before the pipeline runs, which stops in order, SIGTERM is what Ctrl-C is."""
    raise KeyboardInterrupt


for command in (models.export, models.evaluate, models.predict):
    app.command()(command)


def main() -> None:
    """Entry point of ``r2f``."""
    app()


if __name__ == "__main__":
    main()
