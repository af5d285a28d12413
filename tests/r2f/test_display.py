"""What a run says of itself where nobody watches a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from r2f.display import Display
from services.bus.messages import Phase, Progress


@pytest.mark.parametrize(("phase", "number"), [("select", ""), ("train", "loss 12.500"), ("after", "top-1 12.5 %")])
def test_a_number_stands_only_where_there_is_one(phase: Phase, number: str) -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=100)) as display:
        display.progress(Progress(session="s", phase=phase, step=2, steps=2, value=12.5))
    (line,) = [text for text in out.getvalue().splitlines() if text.strip()]
    assert line.endswith(f"2/2 {number}".rstrip())
