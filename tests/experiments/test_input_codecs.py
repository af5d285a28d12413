"""The table of lossless codecs: what it measures, and that it refuses a codec that loses something."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from accelsim.int8.network import UInt8
from experiments import input_codecs
from experiments.input_codecs import Codec


def pictures(channels: int) -> UInt8:
    y, x, c = np.mgrid[0:16, 0:16, 0:channels]
    smooth = 128 + 90 * np.sin(x / 5 + c) * np.cos(y / 4)
    return (smooth + np.random.default_rng(0).integers(0, 4, (3, 16, 16, channels))).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_all_that_are_here_give_the_pixels_back(channels: int) -> None:
    for codec in input_codecs.codecs():
        if codec.name == "QOI" and channels == 1:
            continue
        share, there, back = input_codecs.measure(codec, pictures(channels), rounds=1)
        assert share > 0.1
        assert min(there, back) > 0


def test_shares_and_speeds_are_of_the_raw_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(3)
    clock = iter([0.0, 2.0, 2.0, 3.0, 3.0, 3.5, 3.5, 9.5])
    monkeypatch.setattr("experiments.input_codecs.time.thread_time", lambda: next(clock))
    same = Codec("half", lambda _: [bytes(images.nbytes // 2)], lambda *_: images)
    # Encoded in 2 s and 1 s, decoded in 0.5 s and 6 s.
    share, there, back = input_codecs.measure(same, images, rounds=2)
    assert (share, there, back) == (0.5, images.nbytes / 1e6, images.nbytes / 0.5e6)


def test_a_codec_that_changes_a_pixel_is_refused() -> None:
    images = pictures(1)
    wrong = Codec("wrong", lambda batch: [b""], lambda *_: images ^ (images == images.max()).astype(np.uint8))
    with pytest.raises(ValueError, match="wrong: other pixels"):
        input_codecs.measure(wrong, images, rounds=1)


def test_prints_a_row_for_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "cifar10.npz", test_images=np.repeat(pictures(3), 2, 0))
    np.savez(tmp_path / "data" / "imagenet224.npz", train_images=np.repeat(pictures(3), 40, 0))
    monkeypatch.setattr(sys, "argv", ["input_codecs", "--shared", str(tmp_path)])
    input_codecs.main()
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {codec.name}" for codec in input_codecs.codecs()]
    assert all(row.count("%") == 3 or "QOI" in row for row in rows[2:])


def test_a_cell_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_codecs, "measure", lambda codec, images: (0.4256, 123.4, 567.8))
    sets = [("a", pictures(3)), ("b", pictures(1))]
    other, qoi = (Codec(name, lambda _: [], lambda *_: pictures(1)) for name in ("PNG", "QOI"))
    assert input_codecs.line(other, sets) == "| PNG | 42.6 %; 123, 568 | 42.6 %; 123, 568 |"
    assert input_codecs.line(qoi, sets) == "| QOI | 42.6 %; 123, 568 | - |"
