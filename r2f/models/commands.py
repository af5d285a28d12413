"""``r2f export``, ``r2f evaluate`` and ``r2f predict``. Imports what a command needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from r2f.command_line import guarded, options

Which = Literal["after", "before", "plain"]
Source = Annotated[Path, typer.Argument(metavar="MODEL", help="A run's folder, or a .safetensors file of r2f export.")]
Chosen = Annotated[
    Which, typer.Option(metavar="WHICH", help="Of a run: after retraining, before, or plain, in the paper's arithmetic.")
]


def export(
    model: Source,
    kind: Annotated[
        Literal["onnx", "qdq", "pytorch", "safetensors", "c-header"],
        typer.Option("--format", metavar="FORMAT", help="onnx, qdq, pytorch, safetensors or c-header (docs/deploying.md)."),
    ] = "onnx",
    which: Chosen = "after",
    out: Annotated[Path | None, typer.Option(help=r"The file, or its folder \[default: beside the model]")] = None,
) -> None:
    """Write a run's model as a file for other programs: ONNX, a torch program, a C header, or our own format."""

    def work() -> None:
        from r2f.models import exporting
        from r2f.models.which import model as found

        made = exporting.export(found(model, which), kind, out)
        print(f"{made.path}: {made.size:,} bytes\n{made.takes}")

    guarded(work)


JUDGING = (
    "data", "image-size", "mean", "std", "classes", "ber", "ber-input", "ber-weight", "ber-output", "ber-accumulator",
    "fault-model", "fault-map", "random-faults", "chip-seed", "array", "accelerator", "modules", "protect", "protect-plan",
    "tmr", "uncertain", "seed", "eval-seeds", "eval-samples",
)  # fmt: skip
"""Settings of ``r2f evaluate``."""
OF_THE_RUN: dict[str, Any] = dict.fromkeys(JUDGING)
"""None of them has a default of its own: it is what the run has, whose model it is."""


@options(*JUDGING, defaults=OF_THE_RUN)
def evaluate(
    given: dict[str, Any],
    model: Source,
    which: Chosen = "after",
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Measure a model on held-out images, without and with faults; a run's settings are the defaults."""

    def work() -> None:
        import json

        from rich.console import Console

        from r2f.display import Display
        from r2f.models import judging
        from r2f.models.which import model as of
        from r2f.models.which import settings_of

        found = of(model, which)
        with Display(Console(stderr=as_json)) as display:
            judged = judging.evaluate(found, settings_of(found, given), display)
        if as_json:
            print(json.dumps(judging.plain(judged), indent=2))
        else:
            Console().print(judging.table(judged))

    guarded(work)


@options(
    *(name for name in JUDGING if name not in ("data", "image-size", "mean", "std", "eval-seeds", "eval-samples")),
    defaults=OF_THE_RUN,
)
def predict(
    given: dict[str, Any],
    model: Source,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.")],
    which: Chosen = "after",
    faulty: Annotated[
        bool | None,
        typer.Option(
            "--faults/--no-faults",
            show_default=False,
            help=r"As the faulty device answers: the run's faults, or those given. \[default: if an option names some]",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Answers an image.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """What a model says of images."""

    def work() -> None:
        import json

        from rich.console import Console

        from r2f.models import answering
        from r2f.models.which import model as of
        from r2f.models.which import settings_of

        found = of(model, which)
        struck = any(name.startswith("ber") or name in ("fault-map", "random-faults") for name in given)
        asked = settings_of(found, given)
        answers = answering.predict(found, images, asked, top=top, faulty=struck if faulty is None else faulty)
        if not as_json:
            Console().print(answering.table(list(answers)))
            return
        for one in answers:
            print(json.dumps({**one._asdict(), "file": str(one.file)}), flush=True)

    guarded(work)
