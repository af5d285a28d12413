"""A disk that is full is waited for, and nothing is half written on it."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from accelsim.files import append_whole
from services.trainer import disk
from services.trainer.core import ledger
from services.trainer.core.ledger import Ledger, Row


def row(iteration: int) -> Row:
    return Row(
        iteration=iteration, loss=1.0, accuracy=50.0, grad_norm=2.0, wall_s=0.1, attempts=1, elements=10, mismatched=0,
        mismatched_layers=0, input_bytes=64,
    )  # fmt: skip


def refusing(times: int, number: int) -> Callable[[], str]:
    """A write that the disk refuses so many times."""
    left = [times]

    def write() -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(number, "refused", "file")
        return "done"

    return write


@pytest.mark.parametrize("aside", [False, True])
async def test_a_full_disk_is_waited_for(aside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PAUSE_S", 0.001)
    assert await disk.written(refusing(5, errno.ENOSPC), aside=aside) == "done"
    assert await disk.written(refusing(5, errno.EDQUOT), aside=aside) == "done"


async def test_another_error_is_raised_at_once_and_a_disk_that_stays_full_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="refused: 'file'"):
        await disk.written(refusing(1, errno.EACCES))
    monkeypatch.setattr(disk, "PAUSE_S", 0.001)
    monkeypatch.setattr(disk, "ROOM_S", 0.05)
    with pytest.raises(OSError, match="refused: 'file'"):
        await disk.written(refusing(10**6, errno.ENOSPC))


class Limited:
    """This process may not write files of more than so many bytes: what a full disk does to a write in its middle."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_what_is_added_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append_whole(path, b"before")
    with Limited(10), pytest.raises(OSError, match=str(path)):
        append_whole(path, b"too much for it")
    assert path.read_bytes() == b"before"
    append_whole(path, b" and after")
    assert path.read_bytes() == b"before and after"


def test_rows_that_the_disk_refused_come_with_the_next_once_each(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    book, waiting = Ledger(), [row(0), row(1)]
    book.settle(path, waiting, keep=0)
    waiting.append(row(2))
    with Limited(path.stat().st_size + 20), pytest.raises(OSError, match=str(path)):
        book.settle(path, waiting, keep=0)
    assert [r.iteration for r in ledger.read(path)] == [0, 1]
    waiting.append(row(3))
    book.settle(path, waiting, keep=0)
    book.settle(path, waiting, keep=0)
    assert [r.iteration for r in ledger.read(path)] == [0, 1, 2, 3]
