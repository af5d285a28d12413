"""``python -m experiments``: what there is to run, a line each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def listed() -> Iterator[tuple[str, str]]:
    """(command, first line of its docstring) of each experiment; none of them is imported, which would take seconds."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        yield f"python -m experiments.{path.stem}", text.splitlines()[0]


def main() -> None:
    """Prints them."""
    for command, line in listed():
        print(f"{command:42} {line}")
    print("\nEach has --help. docs/experiments.md says what they read, write and take.")


if __name__ == "__main__":
    main()
