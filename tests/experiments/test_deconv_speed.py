"""Speedups of the four ways: figures that the formula gives by hand, small networks that agree, a wrong one that is found."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from accelsim.int8 import network as net
from accelsim.int8.network import Shape
from accelsim.lowering import lower_ways
from accelsim.timing import Array
from accelsim.zoo.generative import GENERATIVE
from experiments import deconv_speed
from experiments.common import deconvolutions
from experiments.common.deconvolutions import BATCHES, WAYS, Checked, Found, Timed, agreement, checked, timed

# The networks' own make, with few channels, on images as small as their strides allow.
SMALL: dict[str, tuple[int, Shape | None]] = {
    "dcgan": (4, None), "sngan": (4, None), "artgan": (4, None), "gp_gan": (4, None), "monodepth": (4, (128, 128, 3)),
    "fast_style_transfer": (4, (24, 16, 3)), "unet": (4, (32, 16, 3)), "dcgan_faces": (4, None), "waifu2x": (2, (22, 20, 3)),
}  # fmt: skip


@pytest.fixture(scope="module")
def dcgan() -> Found:
    return timed(Timed(network="dcgan"), Path("/nowhere"))


@pytest.fixture(scope="module")
def faces() -> Found:
    return timed(Timed(network="dcgan_faces"), Path("/nowhere"))


def ratios(found: Found, batch: int) -> dict[str, float]:
    written = deconv_speed.summary(found, batch)
    zero = written["cycles_zero_padded"]
    return {way: round(zero / written[f"cycles_{way}"], 2) for way in ("split", "phases", "merged", "best")}


def test_dcgan_by_a_second_count(dcgan: Found) -> None:
    """Ratios of the tiling's formula, counted by hand apart from this code: K, N and T of each layer."""

    def tiles(k: int, n: int, t: int) -> int:
        return (2 * 32 + 32 - 2 + t) * -(-k // 32) * -(-n // 32)

    layers = [(256, 128, 8), (128, 64, 16), (64, 3, 32)]
    for batch in BATCHES:
        zero = sum(tiles(25 * i, o, batch * 4 * size * size) for i, o, size in layers)
        xu = sum(4 * tiles(9 * i, o, batch * (size + 2) ** 2) for i, o, size in layers)
        exact = sum(sum(tiles(a * b * i, o, batch * size * size) for a in (2, 3) for b in (2, 3)) for i, o, size in layers)
        written = deconv_speed.summary(dcgan, batch)
        assert (written["cycles_zero_padded"], written["cycles_split"], written["cycles_phases"]) == (zero, xu, exact)
    assert {**ratios(dcgan, 1), "merged": 0} == {"split": 1.64, "phases": 2.83, "merged": 0, "best": 3.29}
    assert {**ratios(dcgan, 16), "merged": 0} == {"split": 2.06, "phases": 3.88, "merged": 0, "best": 4.89}


def test_faces_by_figures_known_before(faces: Found) -> None:
    for batch, split, phases in ((1, 1.86, 2.02), (16, 2.99, 3.67)):
        assert (ratios(faces, batch)["split"], ratios(faces, batch)["phases"]) == (split, phases)


def test_what_is_lost_is_all_of_it(dcgan: Found, faces: Found) -> None:
    """Shares add up to one, in every way and layer."""
    for found in (dcgan, faces):
        for layer in found.layers:
            for one in layer.costs:
                shares = deconv_speed.lost([layer], [one])
                assert sum(shares.values()) == pytest.approx(1)
                assert min(shares.values()) >= 0
            assert layer.macs["phases"] <= layer.macs["split"]
            assert layer.macs["zero-padded"] == pytest.approx(4 * layer.macs["phases"], rel=0.01)
    three = deconv_speed.lost([dcgan.layers[2]], [deconv_speed.cost(dcgan.layers[2], "phases", 1)])
    assert three["idle_columns"] > 0.7, "3 filters on 32 columns"


@pytest.mark.parametrize("name", list(GENERATIVE))
def test_all_ways_agree(name: str) -> None:
    width, shape = SMALL[name]
    found = checked(Checked(network=name, width=width, shape=shape), Path("/nowhere"))
    assert found.wrong == []
    enlarging = {"dcgan": 3, "sngan": 3, "artgan": 5, "gp_gan": 4, "monodepth": 7, "fast_style_transfer": 2, "unet": 4}
    # A projection of a latent vector is one too.
    projected = name in ("dcgan", "sngan", "artgan", "gp_gan", "dcgan_faces")
    assert found.layers == enlarging.get(name, 4 if name == "dcgan_faces" else 1) + projected
    assert found.distinct > 20, "a network that says one thing agrees with anything"


def test_a_wrong_tap_is_found() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2, 1), nn.ReLU()).eval()
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), np.uint8)
    networks = dict(zip(WAYS, lower_ways(module, images, (0.5,) * 3, (0.5,) * 3, "one", WAYS), strict=True))
    assert agreement(networks, images).wrong == []
    for way in WAYS:
        layers = list(networks[way].layers)
        place = next(i for i, layer in enumerate(layers) if isinstance(layer, net.Conv))
        conv = layers[place]
        assert isinstance(conv, net.Conv)
        weight = conv.weight.copy()
        weight[0, 0, -1, -1] ^= 64
        layers[place] = replace(conv, weight=weight)
        wrong = agreement({**networks, way: replace(networks[way], layers=tuple(layers))}, images).wrong
        assert wrong, way


def test_a_run_writes_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "speed.json"
    arguments = ["--network", "dcgan", "dcgan_faces", "--json", str(file), "--out", str(tmp_path), "--jobs", "1"]
    monkeypatch.setattr(sys, "argv", ["deconv_speed", *arguments, "--cache", str(tmp_path / "cells")])
    assert deconv_speed.main() == 0
    written: dict[str, Any] = json.loads(file.read_text())
    one = written["networks"]["dcgan"]
    assert one["weights"] == "random"
    assert written["networks"]["dcgan_faces"]["weights"].endswith(".safetensors")
    for batch in ("1", "16"):
        for layer in one[batch]["layers"]:
            assert layer["speedup"] >= layer["speedup_xu"] >= 1
        assert one[batch]["picojoules_best"] < one[batch]["picojoules_split"] < one[batch]["picojoules_zero_padded"]
    assert written["average"]["over"] == ["dcgan"], "only those of the paper"
    assert (tmp_path / "deconv_speed.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "Slower than Xu's split: no layer." in said
    assert "average over" not in said.splitlines()[0]
    assert "4.89, the aim is 3.6: reached" in said


def test_shares_are_of_the_default_array() -> None:
    assert (Array().rows, Array().columns) == (32, 32)
    assert deconvolutions.WAYS[0] == "zero-padded"
