"""A service's program with one set of arguments after another: a process that imports once what each start would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from broker.child import environment

_SCRIPT = """
import contextlib, importlib, io, json, sys
import typer
app = typer.Typer(add_completion=False)
app.command()(importlib.import_module(f"{sys.argv[1]}.__main__").main)
for arguments in json.loads(sys.argv[2]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            app(arguments)
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, said.getvalue()]))
"""


def one_after_another(module: str, each: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Exit code and stderr of each start, which must end by itself."""
    command = [sys.executable, "-P", "-c", _SCRIPT, module, json.dumps([[*arguments] for arguments in each])]
    environ = {**environment(), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(each)
    return [(code, said) for code, said in found]
