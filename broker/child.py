"""Child processes: started with this project's own packages in reach, and ended with whoever started them.

``python -m broker.child PARENT SIGNAL COMMAND...`` becomes a command that gets that signal when the process PARENT is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1


def python(module: str, *arguments: str) -> list[str]:
    """Command that runs a module of ours in this interpreter, whatever lies in the current folder.

    Without ``-P``, a folder ``services`` there would be found in place of ours.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Environment in which ``python`` finds the packages that this process runs from, be they installed or a source tree."""
    if _ROOT.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    path = os.pathsep.join(p for p in (str(_ROOT), os.environ.get("PYTHONPATH")) if p)
    return {**os.environ, "PYTHONPATH": path}


def dying_with_us(command: list[str], number: signal.Signals) -> list[str]:
    """Command that runs ``command`` and has it sent a signal when this process is gone, however it went (Linux)."""
    return [*python("broker.child"), str(os.getpid()), number.name, *command]


def main() -> None:
    """Ask the kernel for the signal, then exec. Exits 1 where the parent is gone already."""
    parent, number, command = int(sys.argv[1]), signal.Signals[sys.argv[2]], sys.argv[3:]
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
