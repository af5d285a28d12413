"""Paths are proved before they are taken, and everything is compiled ahead."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from accelsim.engine import Engine, check, paths, vnni
from accelsim.engine.kernels import conv, depthwise
from accelsim.engine.warming import every_layer
from accelsim.faults import Flips
from accelsim.int8.network import Conv, Layer


def test_the_fast_path_passes_its_check_where_the_processor_has_it() -> None:
    # A broken kernel would otherwise only make the engine slow, and the tests above skip.
    if vnni.missing():
        pytest.skip(f"the vnni path cannot run here: {vnni.missing()}")
    assert check("vnni") == ""


def test_a_path_that_fails_its_check_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "check", lambda path: "" if path == "portable" else "it is broken")
    whole = every_layer()
    run = Engine(whole)
    assert run.path == "portable"
    assert "vnni (it is broken)" in run.reason
    with pytest.raises(ValueError, match=r"'vnni' cannot run here: vnni \(it is broken\)"):
        Engine(whole, "vnni")


def test_the_check_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = paths.portable.replica

    def wrong(layer: Conv, x: np.ndarray, struck: Flips, device: str = "cpu") -> np.ndarray:
        y = right(layer, x, struck, device)
        y[-1, -1, -1, -1] ^= 1
        return y

    monkeypatch.setattr(paths.portable, "replica", wrong)
    assert "differs from the reference" in check.__wrapped__("portable")


def test_warming_meets_every_layer_type() -> None:
    assert {type(layer) for layer in every_layer().layers} == set(get_args(Layer))


def test_kernels_are_compiled_once_whatever_is_flipped() -> None:
    """A read-only array in what they are given would be another type to Numba, and seconds of compiling at the first batch."""
    if vnni.missing():
        pytest.skip(f"the vnni path cannot run here: {vnni.missing()}")
    run = Engine(every_layer())
    x = np.zeros((1, 2, 2, 2), np.int8)
    one = np.zeros(1, np.int64)
    for struck in ([Flips()], [Flips(input=one)], [Flips(weight=one, output=one)], [Flips(accumulator=one), Flips()]):
        run.replicas(0, x, struck)
    assert len(conv.signatures) == 1
    assert len(depthwise.signatures) == 1
