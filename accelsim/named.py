"""A user's own code, by its name ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

FOLDER = "R2F_MODULES"
"""Environment variable with the folder in which a process looks, where that is not its current one."""
_folder: ContextVar[str | None] = ContextVar("folder", default=None)


@contextmanager
def looking_in(folder: str | None) -> Iterator[None]:
    """``users`` looks in that folder for the block, None for where it looks anyway."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def users(what: str, spec: str) -> Callable[..., Any]:
    """The function that ``spec`` names, looked for in the folder of ``looking_in`` or $R2F_MODULES first, else the current one.

    Raises ValueError, which begins with ``what`` and the spec, where there is none or its module fails to import.
    """
    path, _, name = spec.partition(":")
    here = _folder.get() or os.environ.get(FOLDER) or os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # the user's own code runs here
        raise ValueError(f"{what} {spec!r}: {_why(path, error)}") from error
    finally:
        # Last from now on: what the module imports later is found, and nothing there stands in front of our own packages.
        if here in sys.path:
            sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)
    function = getattr(module, name, None)
    if not callable(function):
        found = f"{name} is not a function" if hasattr(module, name) else f"no {name!r}"
        raise ValueError(f"{what} {spec!r}: {found} in {module.__file__ or path}; expected package.module:function")
    checked: Callable[..., Any] = function
    return checked


def _why(path: str, error: BaseException) -> str:
    parents = {path[:end] for end in (*(i for i, letter in enumerate(path) if letter == "."), len(path))}
    if isinstance(error, ModuleNotFoundError) and error.name in parents:
        return f"{error}, here or installed; expected package.module:function"
    return f"its import fails: {type(error).__name__}: {error}"
