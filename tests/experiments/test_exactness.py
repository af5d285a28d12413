from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.datasets import load
from accelsim.int8.network import Network
from accelsim.lowering import lower
from experiments import exactness
from experiments.common import chain
from experiments.common.chain import Batch


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    data = load("digits")
    return lower(zoo.build("digits_cnn", 10).eval(), data.train_images[:64], data.mean, data.std, name="small")


@pytest.fixture
def main(network: Network, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """The program on that network; gives its exit code."""
    monkeypatch.setattr(exactness, "photos", lambda shared: load("digits").train_images)
    monkeypatch.setattr(exactness, "stored", lambda source, shared, images, cache: network)

    def run(*arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["exactness", *arguments])
        return exactness.main()

    return run


def test_counts_what_repairs_took(network: Network) -> None:
    settled, plain = exactness.measure(network, load("digits").train_images[:8], 1e-3, seed=1, iteration=0)
    assert (settled.settled, plain.settled) == (True, False)
    assert settled.wrong == plain.wrong == 0
    assert settled.layers == plain.layers == len(list(network.convs()))
    assert settled.referee_macs > 0 == plain.referee_macs
    assert settled.macs == plain.macs > 0
    assert settled.raw == plain.raw == 8 * sum(int(np.prod(layer.shape)) for _, layer in network.convs())
    # Three-way votes are wrong at this rate, and their repairs are what the server's tensors needed.
    assert plain.before > settled.before
    assert 1 <= plain.round_trips <= 2
    assert plain.up > 0 < plain.down
    assert 0 < plain.repair_macs <= 2 * plain.macs
    assert plain.chained > plain.up


def test_prints_a_row_for_each_and_ends_well(main: Callable[..., object], capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--network", "squeezenet1_1", "--ber", "0", "1e-3", "--batch", "8") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| small")]
    assert [row.split(" | ")[1:3] for row in rows] == [
        ["0e+00", "settled"], ["0e+00", "three-way"], ["1e-03", "settled"], ["1e-03", "three-way"],
    ]  # fmt: skip
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert lines[-1].endswith("bit for bit")


def test_a_row_shows_its_own_numbers() -> None:
    row = exactness.Row(
        network="n", ber=1e-5, settled=True, layers=7, before=0.125, wrong=3, raw=100_000, round_trips=2, up=300, down=200,
        chained=2_000, repair_macs=4_000_000_000, referee_macs=1_000_000_000, macs=8_000_000_000,
    )  # fmt: skip
    titles = [title.strip() for title in exactness.HEAD.strip("|").split("|")]
    assert dict(zip(titles, [cell.strip() for cell in str(row).strip("|").split("|")], strict=True)) == {
        "network": "n", "BER": "1e-05", "votes": "settled", "layers": "7", "wrong before": "12.50%", "wrong": "3",
        "sent, of raw": "2.300%", "round trips": "2", "repair up B": "300", "down B": "200", "of the chained bytes": "25.00%",
        "repair GMAC": "4", "of a pass": "50.00%", "referee, of a pass": "12.50%",
    }  # fmt: skip


def test_one_element_that_differs_is_told_and_is_an_error(
    main: Callable[..., object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true = chain.chained

    def wrong(*arguments: object, **options: object) -> Batch:
        batch = true(*arguments, **options)
        last = max(batch.outputs)
        batch.outputs[last] = batch.outputs[last].copy()
        batch.outputs[last].reshape(-1)[3] ^= np.int8(1)
        return batch

    monkeypatch.setattr(chain, "chained", wrong)
    assert main("--network", "squeezenet1_1", "--ber", "1e-4", "--batch", "2") == 1
    assert "2 elements differ" in capsys.readouterr().out
