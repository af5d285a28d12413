"""What the commands of ``r2f`` share: options that are settings, and one clear line for what goes wrong."""

from __future__ import annotations

import inspect
import os
import select
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from r2f import settings as settings_file
from r2f.settings import OPTIONS
from services.passwords import no_password

_FOLLOWING = ("ber-input", "ber-weight", "ber-output", "launch")
"""Settings that hang on another one where they are not given, whatever their field's default."""


def options(*names: str, defaults: dict[str, Any] | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of these settings; its ``given`` gets those that the user named, by name."""
    shown = settings_file.DEFAULTS | (defaults or {})

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters.values()
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.name != "given"]
        made = [_parameter(name, shown.get(name)) for name in names]

        def wrapped(**arguments: Any) -> None:
            given = {name: arguments.pop(name.replace("-", "_")) for name in names}
            command(given={name: value for name, value in given.items() if value is not None}, **arguments)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        wrapped.__signature__ = inspect.Signature(made + own)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in made + own}
        return wrapped

    return decorate


def _parameter(name: str, default: Any) -> inspect.Parameter:
    kind, option = settings_file.type_of(name), OPTIONS[name]
    words = _word(kind)
    if isinstance(default, list):
        default = ",".join(map(str, default))
    text = option.help
    if get_origin(words) is Literal:
        text = f"{', '.join(get_args(words))}: {text[0].lower()}{text[1:]}"
    if default not in (None, "") and words is not bool and name not in _FOLLOWING:
        text += f" [default: {default}]"
    elif words is bool and default is True and name not in _FOLLOWING:
        text += " [default: on]"
    spelled = f"--{name}/--no-{name}" if words is bool else f"--{name}"
    extra: dict[str, Any] = {"envvar": "R2F_BROKER", "callback": no_password} if name == "broker" else {}
    # typer's rich panels read square brackets as markup. Eighty columns are enough where choices are in the text.
    said = typer.Option(
        spelled, help=text.replace("[", r"\["), show_default=False, rich_help_panel=option.panel,
        metavar={int: "INT", float: "FLOAT", bool: " "}.get(words, "TEXT"), **extra,
    )  # fmt: skip
    annotation = Annotated[words | None, said]  # type: ignore[valid-type]
    return inspect.Parameter(name.replace("-", "_"), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _word(kind: Any) -> Any:
    """What typer reads a setting as. Bounds are checked in one place, ``settings.parse``, for files and Python calls too."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return kind if all(isinstance(value, str) for value in get_args(kind)) else int
    alternatives = [part for part in get_args(kind) if part is not type(None)]
    if alternatives and get_origin(kind) is not tuple:
        kind = alternatives[0]
    return kind if kind in (bool, int, float) else str


def guarded(work: Callable[[], None]) -> None:
    """One clear line and exit 1 for what goes wrong, 3 where somebody had the run stopped; 130 behind Ctrl-C; nothing more
    where nobody reads on."""
    try:
        work()
        sys.stdout.flush()
    except BaseException as error:
        from r2f.errors import first, told
        from services.bus.service import STOPPED, Stopped

        found = first(error)
        if isinstance(found, SystemExit | GeneratorExit | typer.Exit | typer.Abort):
            raise
        if isinstance(found, KeyboardInterrupt):
            raise typer.Exit(130) from None
        if isinstance(found, Stopped):
            print(f"r2f: {found}", file=sys.stderr)
            raise typer.Exit(STOPPED) from None
        if isinstance(found, BrokenPipeError) and _nobody_reads():  # as of r2f runs | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        print(f"r2f: {told(error)}", file=sys.stderr)
        raise typer.Exit(1) from None


def _nobody_reads() -> bool:
    """Whether it is standard output that is broken, not a broker's socket."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except OSError:  # it is no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))
