"""A file that is replaced is the old one or the new one, never half of either, and nothing else stays in its folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from accelsim.files import read_lines, write_whole


def test_content_comes_back_and_the_old_one_is_kept_where_asked(tmp_path: Path) -> None:
    path, kept = tmp_path / "a", tmp_path / "b"
    write_whole(path, b"1", keep=kept)
    assert not kept.exists()
    write_whole(str(path), b"2", keep=str(kept))
    write_whole(path, b"3")
    assert (path.read_bytes(), kept.read_bytes()) == (b"3", b"1")
    assert sorted(tmp_path.iterdir()) == [path, kept]


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path, kept = tmp_path / "a", tmp_path / "b"
    write_whole(path, b"1")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"2", keep=kept)
    monkeypatch.undo()
    assert path.read_bytes() == b"1"
    write_whole(path, b"3", keep=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"3", b"1")
    assert sorted(tmp_path.iterdir()) == [path, kept]


def test_a_reader_never_sees_half(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = {bytes([i]) * 300_000 for i in range(4)}
    write_whole(path, min(contents))
    done = threading.Event()

    def write() -> None:
        for _ in range(10):
            for content in contents:
                write_whole(path, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_bytes() in contents
    writer.join()


class _Row(msgspec.Struct):
    number: int


def test_lines_are_read_but_one_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_lines(file, _Row, "") == []
    file.write_bytes(b'{"number":1}\n{"number":2}\n{"numb')
    assert [row.number for row in read_lines(file, _Row, "")] == [1, 2]
    assert file.read_bytes() == b'{"number":1}\n{"number":2}\n', "what is added next is a line of its own"
    file.write_bytes(b'{"number":1}\n{"number":"x"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: .*; delete it, and it is measured anew"):
        read_lines(file, _Row, "it is measured anew")


def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(tmp_path: Path) -> None:
    """A real limit on the size of files, in a process of its own: SIGXFSZ ignored, as the kernel then says EFBIG."""
    program = (
        "import resource, signal, sys\nfrom accelsim.files import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_whole(sys.argv[1], bytes(2000))\nexcept OSError as error:\n    print(error.errno, error)\n"
    )
    path = tmp_path / "a"
    path.write_bytes(b"old")
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(str(errno.EFBIG))
    assert repr(str(path)) in ended.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_there_is_no_room_for_is_added_in_no_part(tmp_path: Path) -> None:
    """Under a real limit on the size of files, which lets the first part of it in."""
    program = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom accelsim.files import append_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    append_whole(Path(sys.argv[1]), bytes(200))\nexcept OSError as error:\n    print(error.errno, error)\n"
    )
    path = tmp_path / "rows"
    path.write_bytes(b"x" * 900)
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(str(errno.EFBIG))
    assert str(path) in ended.stdout
    assert path.read_bytes() == b"x" * 900
