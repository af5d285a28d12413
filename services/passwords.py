"""A broker's password: from a file or the environment, never among the arguments, and hidden in what people are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

FILE: Final = "R2F_PASSWORD_FILE"
LONGEST: Final = 4096
"""Bytes of a file with a password, at most."""


def found() -> str | None:
    """The password in the file $R2F_PASSWORD_FILE, else $R2F_PASSWORD. Raises ValueError for a file that holds none."""
    name = os.environ.get(FILE)
    if not name:
        return os.environ.get("R2F_PASSWORD")
    try:
        with open(name, encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except OSError as error:
        raise ValueError(f"{FILE} is {name!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{FILE} is {name!r}: it is no text") from None
    password = text.removesuffix("\n").removesuffix("\r")
    if not password or "\n" in password or len(text) > LONGEST:
        raise ValueError(f"{FILE} is {name!r}: it must hold one line, the password, of {LONGEST} bytes at most")
    return password


def hidden(url: str) -> str:
    """The URL without its password, for messages."""
    head, at, tail = url.rpartition("@")
    scheme, colon, _ = head.partition("://")
    return f"{scheme if colon else 'mqtt'}://…@{tail}" if at else url


def has_password(url: str) -> bool:
    """Whether there is a password in a broker's address."""
    user = url.rpartition("@")[0]
    return ":" in (user.partition("://")[2] if "://" in user else user)


def no_password(context: typer.Context, parameter: typer.CallbackParam, url: str | None) -> str | None:
    """A broker's address as it is. Raises BadParameter for one with a password among the arguments."""
    given = context.get_parameter_source(parameter.name or "")
    if url is not None and given is not None and given.name == "COMMANDLINE" and has_password(url):
        raise typer.BadParameter(
            f"{hidden(url)}: every user of this host sees the password among the arguments; write it into a file, and name "
            f"that with --password-file or {FILE}"
        )
    return url


def _kept(path: Path | None) -> Path | None:
    if path is not None:
        os.environ[FILE] = str(path.absolute())  # processes that are started inherit it
    return path


PasswordFile = Annotated[
    Path | None,
    typer.Option(
        envvar=FILE, callback=_kept, expose_value=False, is_eager=True, help="File with the password of the broker's user.",
    ),
]  # fmt: skip
