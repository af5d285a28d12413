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


def test_steps_of_many_are_lines_without_a_terminal() -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=100)) as display:
        with display.counting("tenths") as tell:
            for done in (1, 10, 11, 20):
                tell(done, 100, "")
        with display.counting("columns explained", every=True) as tell:
            tell(3, 32, "round 1, 330 vectors sent")
            tell(31, 32, "round 2, 442 vectors sent")
    assert [line.strip() for line in out.getvalue().splitlines() if line.strip()] == [
        "tenths: 10/100",
        "tenths: 20/100",
        "columns explained: 3/32 round 1, 330 vectors sent",
        "columns explained: 31/32 round 2, 442 vectors sent",
    ]
