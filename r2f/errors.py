"""What a person is told when something goes wrong: one line; and where the traceback is, if the mistake is ours."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from pathlib import Path

from services.shown import plain


def first(error: BaseException) -> BaseException:
    """The error itself; of several tasks' errors, which come as a group, the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def told(error: BaseException) -> str:
    """One line on an error. What the user cannot mend leaves its traceback in a file, which the line names."""
    found = first(error)
    said = plain(" ".join(str(found).split())) or type(found).__name__
    if _mendable(found):
        return said
    return f"{type(found).__name__}: {said}; that is a mistake in R2F, please report it with {_kept(error)}"


def _mendable(error: BaseException) -> bool:
    from r2f.pipeline import PipelineError
    from services.bus import BusError

    return isinstance(error, BusError | PipelineError | ValueError | OSError)


def _kept(error: BaseException) -> Path:
    """File with the traceback, for its owner alone, in the temporary folder."""
    handle, name = tempfile.mkstemp(".txt", f"r2f-error-{time.strftime('%Y%m%d-%H%M%S')}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))
    return Path(name)
