"""``r2f``: retrain a network with the faulty device in the loop, and watch it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from accelsim.faults import Rates
from r2f import run, tap
from r2f.display import Display
from r2f.pipeline import PipelineError
from services.bus import BusError
from services.scheme import Scheme
from services.trainer.core.optimiser import Sgd

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Retrain int8 networks with the faulty device's own errors in the loop, over MQTT.",
)

DEMO = run.Settings(
    network=run.DEMO_NETWORK,
    rates=Rates(input=2e-3, weight=2e-3, output=2e-3),
    iterations=120,
    batch=32,
    sgd=Sgd(rate=5e-3, clip=1.0),
    evaluation_seeds=5,
    embedded=True,
)


class CodecName(StrEnum):
    direct = "direct"
    golden = "golden"
    chained = "chained"


class VoteName(StrEnum):
    median = "median"
    bitwise = "bitwise"


class RedundancyName(StrEnum):
    layer = "layer"
    network = "network"


class LabelSource(StrEnum):
    device = "device"
    server = "server"
    teacher = "teacher"
    teacher_soft = "teacher-soft"


class AcceleratorName(StrEnum):
    simulated = "simulated"
    onnxruntime = "onnxruntime"


Out = Annotated[Path, typer.Option(help="Where run folders go.")]
StartTrainer = Annotated[
    bool, typer.Option("--trainer/--no-trainer", help="Start the trainer too; without, one waits: services.trainer --next OUT.")
]


@app.command()
def demo(
    iterations: Annotated[int, typer.Option(help="Training iterations.")] = DEMO.iterations,
    out: Out = Path("runs"),
    broker: Annotated[
        str | None, typer.Option(envvar="R2F_BROKER", help="Use this broker and the services on it; start none.")
    ] = None,
    trainer: StartTrainer = True,
) -> None:
    """Real digits, a small CNN, a device with bit errors, the whole pipeline; a table and plots at the end."""
    settings = msgspec.structs.replace(DEMO, iterations=iterations, broker=broker, launch=broker is None, trainer=trainer)
    _new(settings, out)


@app.command()
def retrain(
    network: Annotated[
        str, typer.Option(help="A name of the zoo (see r2f doctor), or mypackage.mymodule:build for your own.")
    ] = run.DEMO_NETWORK,
    weights: Annotated[str | None, typer.Option(help="Trained float weights: .safetensors or .pth state dict.")] = None,
    data: Annotated[str, typer.Option(help="'digits', an .npz with train_images..., or a folder of class folders.")] = "digits",
    image_size: Annotated[str | None, typer.Option(help="HxWxC that a folder's images are scaled to.")] = None,
    ber: Annotated[float, typer.Option(min=0, max=1, help="Bit error rate at inputs, weights, outputs of MAC layers.")] = 1e-4,
    ber_input: Annotated[float | None, typer.Option(min=0, max=1, help="At inputs alone [default: --ber]")] = None,
    ber_weight: Annotated[float | None, typer.Option(min=0, max=1, help="At weights alone [default: --ber]")] = None,
    ber_output: Annotated[float | None, typer.Option(min=0, max=1, help="At outputs alone [default: --ber]")] = None,
    ber_accumulator: Annotated[float, typer.Option(min=0, max=1, help="At accumulators.")] = 0.0,
    codec: Annotated[CodecName, typer.Option(help="How outputs cross the link.")] = CodecName.chained,
    vote: Annotated[VoteName, typer.Option(help="How replicas are voted on.")] = VoteName.median,
    replicas: Annotated[int, typer.Option(help="Executions of each layer for the vote, without --referee: 3, 5 or 7.")] = 3,
    referee: Annotated[bool, typer.Option(help="As many executions as a layer needs, the CPU settling the rest.")] = True,
    exact: Annotated[bool, typer.Option(help="Repair what the server's digests say is wrong.")] = True,
    theta: Annotated[float, typer.Option(min=0, max=1, help="Codec golden: less similar layers go direct.")] = 0.6,
    redundancy: Annotated[RedundancyName, typer.Option(help="Codec golden: whose TMR it refers to.")] = RedundancyName.layer,
    jpeg: Annotated[int, typer.Option(min=0, max=100, help="Quality of JPEG images that the device runs on; 0: none.")] = 0,
    float_inputs: Annotated[bool, typer.Option("--float-inputs", help="Send images as float32, as the paper.")] = False,
    protect: Annotated[str, typer.Option(help="Layers (indices, comma-separated) that run in TMR.")] = "",
    iterations: Annotated[int, typer.Option(help="Training iterations.")] = 100,
    batch: Annotated[int, typer.Option(help="Images an iteration.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradients.")] = 5.0,
    labels: Annotated[LabelSource, typer.Option(help="Where labels come from.")] = LabelSource.device,
    seed: Annotated[int, typer.Option(help="Of sample order and faults in training.")] = 0,
    eval_seeds: Annotated[int, typer.Option(help="Fault seeds of the evaluations.")] = 5,
    eval_samples: Annotated[int, typer.Option(help="At most this many held-out images.")] = 1000,
    checkpoint_every: Annotated[int, typer.Option(help="Iterations between checkpoints.")] = 10,
    link: Annotated[str | None, typer.Option(help="Link profile: lora, 802.15.4g, hspa, lte.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Make the link real: a shaping proxy between two brokers.")] = False,
    device: Annotated[str, typer.Option(help="Name of the device.")] = "edge-0",
    device_memory_mb: Annotated[int, typer.Option(help="Memory of the device; its services wait rather than use more.")] = 1024,
    accelerator: Annotated[AcceleratorName, typer.Option(help="What the agent drives.")] = AcceleratorName.simulated,
    array: Annotated[Path | None, typer.Option(help="SCALE-Sim .cfg of the array whose time is modelled.")] = None,
    broker: Annotated[
        str | None, typer.Option(envvar="R2F_BROKER", help="A broker that runs already [default: start one]")
    ] = None,
    launch: Annotated[bool | None, typer.Option(help="Start the services too [default: only without --broker]")] = None,
    trainer: StartTrainer = True,
    embedded: Annotated[bool, typer.Option(help="Start the embedded broker even where Mosquitto is installed.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run's folder; other options are its own.")] = None,
    out: Out = Path("runs"),
) -> None:
    """Retrain a network on a device that makes errors: forward pass there, backward pass here, int8 model back."""
    if resume is not None:
        _guarded(lambda live: _finish(run.read_settings(resume), resume, live))
        return
    if jpeg and float_inputs:
        raise typer.BadParameter("give it or --jpeg, not both", param_hint="--float-inputs")
    settings = run.Settings(
        network=network,
        weights=weights,
        data=data,
        image_size=_size(image_size),
        rates=Rates(
            input=ber if ber_input is None else ber_input,
            weight=ber if ber_weight is None else ber_weight,
            accumulator=ber_accumulator,
            output=ber if ber_output is None else ber_output,
        ),
        scheme=Scheme(
            codec=codec.value,
            vote=vote.value,
            replicas=_replicas(replicas),
            referee=referee,
            exact=exact,
            theta=theta,
            redundancy=redundancy.value,
            jpeg=jpeg,
            float_inputs=float_inputs,
            protected=_indices(protect),
        ),
        iterations=iterations,
        batch=batch,
        sgd=Sgd(rate=lr, momentum=momentum, weight_decay=weight_decay, clip=clip),
        labels=labels.value,
        seed=seed,
        evaluation_seeds=eval_seeds,
        evaluation_samples=eval_samples,
        checkpoint_every=checkpoint_every,
        link=link,
        live=live,
        device=device,
        device_memory_mb=device_memory_mb,
        accelerator=accelerator.value,
        array=None if array is None else str(array),
        broker=broker,
        launch=(broker is None) if launch is None else launch,
        trainer=trainer,
        embedded=embedded,
    )
    _new(settings, out)


@app.command("tap")
def tap_command(
    pattern: Annotated[str, typer.Argument(help="Topics, short ('event/#') or whole ('r2f/v1/+/up/#').")] = "event/#",
    broker: Annotated[str, typer.Option(envvar="R2F_BROKER", help="mqtt://host:port")] = "mqtt://127.0.0.1:1883",
    device: Annotated[str, typer.Option(envvar="R2F_DEVICE", help="Name of the device.")] = "edge-0",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    count: Annotated[int, typer.Option(help="Stop after so many messages; 0 never.")] = 0,
) -> None:
    """Print decoded messages, one a line, for as long as you like. It costs the pipeline nothing."""
    _exit_on(lambda: asyncio.run(tap.tap(pattern, broker, device, as_json=as_json, count=count)))


@app.command()
def doctor() -> None:
    """What this machine offers: engine paths and why, brokers, shared memory, networks."""
    from r2f.doctor import rows

    table = Table("what", "state", "why", title="r2f doctor", title_justify="left")
    for row in rows():
        table.add_row(*row)
    Console().print(table)


def _new(settings: run.Settings, out: Path) -> None:
    folder = run.new_folder(out, settings.network)

    def work(live: Display) -> None:
        run.prepare(settings, folder, live)
        _finish(settings, folder, live)

    _guarded(work, folder)


def _finish(settings: run.Settings, folder: Path, live: Display) -> None:
    asyncio.run(run.execute(settings, folder, live))
    live.console.print(run.finish(settings, folder))


def _guarded(work: Callable[[Display], None], folder: Path | None = None) -> None:
    console = Console()

    def inside() -> None:
        with Display(console) as live:
            work(live)

    try:
        _exit_on(inside)
    except KeyboardInterrupt:
        if folder is not None and (folder / run.FILE).exists():
            console.print(f"stopped; go on with: r2f retrain --resume {folder}")
        raise typer.Exit(130) from None


def _exit_on(work: Callable[[], None]) -> None:
    """One clear line and exit 1 for what the user can mend; a traceback is for our own mistakes."""
    try:
        work()
    except (BusError, PipelineError, ValueError, OSError) as error:
        found: BaseException = error
    except BaseExceptionGroup as group:
        found = group
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if not isinstance(found, BusError | PipelineError | ValueError | OSError):
            raise
    else:
        return
    print(f"r2f: {found}", file=sys.stderr)
    raise typer.Exit(1)


def _size(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r}: expected HxWxC, e.g. 224x224x3", param_hint="--image-size")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _replicas(count: int) -> Literal[3, 5, 7]:
    match count:
        case 3 | 5 | 7:
            return count
    raise typer.BadParameter(f"{count}: expected 3, 5 or 7", param_hint="--replicas")


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected layer indices such as 0,3,7", param_hint="--protect") from None


def main() -> None:
    """Entry point of ``r2f``."""
    app()


if __name__ == "__main__":
    main()
