"""A digest of the code that a function depends on, so that what was measured by other code is not taken for its result."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""Of the checkout; what is imported from elsewhere counts by its version, below."""
LIBRARIES: Final = ("numpy", "torch", "scikit-learn")
"""Others whose version a result may depend on."""


def code_version(function: Callable[..., Any]) -> str:
    """Digest of the module of ``function`` and of all that it imports from ``ROOT``, however far down.

    Comments, docstrings and layout do not count. Raises ValueError where the function was typed in rather than imported.
    """
    source = inspect.getsourcefile(function)
    if source is None or not Path(source).is_file():
        raise ValueError(f"{function.__qualname__}: it lies in no file, so its code has no version; put it into a module")
    return _version(Path(source))


@functools.cache
def _version(source: Path) -> str:
    finder = ModuleFinder(path=[str(ROOT)])
    finder.run_script(str(source))
    files = {Path(path) for module in finder.modules.values() if (path := getattr(module, "__file__", None))}
    found = hashlib.sha256()
    for name in LIBRARIES:
        found.update(f"{name} {version(name)}\n".encode())
    for path in sorted(files):
        found.update(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}\n{_meaning(path)}\n".encode())
    return found.hexdigest()


def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [each for each in body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
            node.body = kept  # type: ignore[attr-defined]
    return ast.dump(tree)
