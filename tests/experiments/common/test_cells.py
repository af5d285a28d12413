"""Cells of the digits' network, which needs no files: each number again by other means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from accelsim import datasets
from accelsim.accelerators import Simulated
from accelsim.datasets import spread
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from experiments.common import cells, protecting, retraining, splits
from experiments.common.cells import Agreement, Cell
from r2f import settings as r2f_settings
from services.trainer.core.optimiser import TrainingDiverged

RECIPE = (("iterations", 4), ("codec", "direct"), ("lr", 5e-3))


def test_a_cell_is_retrained_and_evaluated_as_it_says() -> None:
    cell = Cell(network="digits_cnn", trained=2e-3, deployed=(0.0, 1e-3), recipe=RECIPE, seeds=2, images=90, part="selection")
    found = cells.found(cell, Path("/nowhere"))
    settings = r2f_settings.parse({"ber": 2e-3, **dict(RECIPE)})
    source = datasets.load("digits")
    module = retraining.float_module(settings, splits.reporting(source))
    network = retraining.quantised(settings, module, source)
    data = splits.choosing(source)
    network, spent = retraining.retrained(settings, network, data)
    places = spread(90, len(data.test_images))
    again = [
        retraining.inprocess.evaluate(
            network, data.test_images[places], data.test_labels[places], Rates.uniform(ber), (1001, 1002), batch=16
        )
        for ber in (0.0, 1e-3)
    ]
    assert [a.mean for a in found.accuracy] == pytest.approx([np.mean(e.top1) for e in again], abs=1e-3)
    assert [a.n for a in found.accuracy] == [1, 2]
    assert (found.metric, found.images, found.spent, found.overhead) == ("top1", 90, spent, 0.0)


def test_divergence_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise TrainingDiverged(3, float("nan"), 1.0, None)

    monkeypatch.setattr(retraining, "retrained", fails)
    found = cells.found(Cell(network="digits_cnn", trained=1e-3, deployed=(1e-3,)), Path("/nowhere"))
    assert (found.accuracy, found.diverged) == ((), 3)


def test_protection_costs_what_it_says_and_helps() -> None:
    base = Cell(network="digits_cnn", trained=None, deployed=(3e-3,), seeds=2, images=128)
    plain = cells.found(base, Path("/nowhere"))
    half = cells.found(structs.replace(base, budget=0.5), Path("/nowhere"))
    whole = cells.found(structs.replace(base, budget=2.0), Path("/nowhere"))
    assert plain.overhead == 0 < half.overhead <= 0.5
    assert whole.overhead == pytest.approx(2.0, abs=1e-3)
    assert plain.accuracy[0].mean < half.accuracy[0].mean < whole.accuracy[0].mean


def test_protection_by_estimates_chooses_among_networks_for_other_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def last(settings: object, networks: list[Network], exact: Network, *_: object) -> Network:
        tried.extend(map(storage.digest, [*networks, exact]))
        return networks[-1]

    monkeypatch.setattr(protecting, "fitting", last)
    cell = Cell(network="digits_cnn", trained=None, deployed=(3e-3,), seeds=1, images=16, budget=0.5, search="estimated")
    cells.found(cell, Path("/nowhere"))
    assert len(set(tried)) == 4
    tried.clear()
    cells.found(structs.replace(cell, search="algorithm1"), Path("/nowhere"))
    cells.found(structs.replace(cell, budget=0.0), Path("/nowhere"))
    assert not tried


def test_agreement_is_the_share_of_outputs_that_are_right() -> None:

    cell = Agreement(network="digits_cnn", ber=1e-3, redundancy="layer", images=8, seeds=1)
    found = cells.agreed(cell, Path("/nowhere"))
    source = datasets.load("digits")
    settings = r2f_settings.parse({"activations": "signed"})
    network = retraining.quantised(settings, retraining.float_module(settings, splits.reporting(source)), source)
    x = network.quantize_images(source.test_images[spread(8, len(source.test_images))])
    right = Engine(network).run(x)[-1]
    device = Simulated(Rates.uniform(1e-3), 1001)
    device.load(network)
    assert found.single.mean == pytest.approx(100 * np.mean(device.run(x, iteration=0)[-1] == right), abs=1e-3)
    assert found.voted.mean > found.single.mean
    assert found.voted.n == 1
