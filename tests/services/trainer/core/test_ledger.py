"""What the stages' events add up to, and which rows a resumed run keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.bus.messages import Timing
from services.trainer.core import ledger
from services.trainer.core.ledger import Ledger, Row, Segment


def row(iteration: int) -> Row:
    return Row(
        iteration=iteration, loss=1.0, accuracy=50.0, grad_norm=2.0, wall_s=0.1, attempts=1, elements=10, mismatched=0,
        mismatched_layers=0, input_bytes=64,
    )  # fmt: skip


def event(stage: str, segment: int = 0, host: float = 0.0, device: float = 0.0, size: int = 0, iteration: int = 0) -> Timing:
    return Timing(
        session="s", stage=stage, iteration=iteration, host_s=host, device_s=device, bytes=size, segment=segment
    )  # fmt: skip


def test_events_are_summed_by_kind_and_counted_once() -> None:
    book = Ledger()
    events = [
        event("forward", 0, 1, 10), event("forward", 1, 2, 20), event("tmr", 0, 4, 40), event("tmr", 0, 8),
        event("compress", 0, 16, size=100), event("compress", 1, 32, size=200), event("decompress", 1, 64),
        event("compress", -1, size=1000), event("compress", -2, size=2000), event("compress", -3, size=4000),
        event("compress", -7, size=8000),
    ]  # fmt: skip
    for timing in [*events, *events]:
        book.add(timing)
    book.add(event("forward", 0, 99, iteration=1))
    found = book.fill(row(0))
    assert found.host_s == {"forward": 3, "tmr": 12, "compress": 48, "decompress": 64}
    assert found.device_s == {"forward": 30, "tmr": 40, "compress": 0, "decompress": 0}
    assert (found.uplink_layers, found.uplink_inputs, found.downlink, found.uplink_repairs) == (300, 1000, 2000, 12000)
    assert found.segments == [Segment(50, 16, 100, 0), Segment(20, 32, 200, 64)]
    assert book.fill(row(0)).host_s == {}


@pytest.mark.parametrize(("rows", "keep", "written"), [(3, 0, 3), (3, 2, 1), (2, 2, 0), (1, 2, 0), (3, 5, 0), (0, 0, 0)])
def test_rows_are_settled_but_the_last(rows: int, keep: int, written: int, tmp_path: Path) -> None:
    waiting = [row(i) for i in range(rows)]
    Ledger().settle(tmp_path / "p.jsonl", waiting, keep=keep)
    assert [r.iteration for r in ledger.read(tmp_path / "p.jsonl")] == list(range(written))
    assert [r.iteration for r in waiting] == list(range(written, rows))


def test_a_resumed_run_does_again_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    ledger.truncate(path, 0)
    ledger.append(path, [row(0), row(1), row(2)])
    with path.open("ab") as file:
        file.write(b'{"iteration":3')  # cut short
    assert [r.iteration for r in ledger.read(path)] == [0, 1, 2]
    ledger.truncate(path, 2)
    assert [r.iteration for r in ledger.read(path)] == [0, 1]
