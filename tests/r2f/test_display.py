"""What a run says of itself where nobody watches a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from r2f.display import Display
from services.bus.messages import Phase, Progress


@pytest.mark.parametrize(("phase", "number"), [("select", "checked"), ("train", "loss 12.500"), ("after", "top-1 12.5 %")])
def test_a_number_stands_only_where_there_is_one(phase: Phase, number: str) -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=100)) as display:
        display.progress(Progress(session="s", phase=phase, step=2, steps=2, value=12.5))
    (line,) = [text for text in out.getvalue().splitlines() if text.strip()]
    assert line.endswith(number)


def heard(devices: int = 1) -> list[str]:
    """What is said of a run with two checks behind iterations, the first of them of corrected biases."""
    out = io.StringIO()

    def tell(phase: Phase, steps: int, first: int = 1, *, faults: bool = True) -> None:
        for step in range(first, steps + 1):
            display.progress(Progress(session="s", phase=phase, step=step, steps=steps, value=1, faults=faults))

    with Display(Console(file=out, width=100)) as display:
        display.devices = devices
        tell("before", 1)
        tell("select", 3, faults=False)
        tell("select", 10)
        # A check is over before the iteration that it is of is told of.
        tell("select", 10)
        tell("train", 4)
        tell("select", 10)
        tell("train", 5, 5)
    return [line.strip() for line in out.getvalue().splitlines() if line.strip()]


def test_a_check_is_one_line_that_says_what_was_checked() -> None:
    title = "choose what is deployed"
    assert [line for line in heard() if line.startswith(title)] == [
        f"{title}, no faults: fault-free answers taken",
        f"{title}: checked before retraining",
        f"{title}: checked after iteration 1",
        f"{title}: checked after iteration 5",
    ]


def test_of_several_devices_a_check_names_no_iteration() -> None:
    """Their steps are counted together, so none is one device's."""
    assert [line for line in heard(devices=2) if "deployed: " in line] == ["choose what is deployed: checked"] * 3


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
