"""Fig. 8 (and 10, which is made alike): all batch sizes see as many images, all epochs the same ones."""

from __future__ import annotations

import pytest

from experiments import fig8_batch, fig10_epochs
from experiments.common import methods


@pytest.mark.parametrize("full", [False, True])
def test_batches_see_equally_many_images(full: bool) -> None:
    wanted = fig8_batch.wanted(["resnet20"], full, 5)
    for w in wanted:
        if w.method != "Base":
            settings = dict(w.cell.recipe)
            assert settings["batch"] == w.x
            assert settings["iterations"] * w.x == pytest.approx(methods.SAMPLES[full], rel=0.01)
            assert w.cell.trained == w.cell.deployed[0] == 1e-3
    # Base is measured once.
    assert len({w.cell for w in wanted if w.method == "Base"}) == 1


def test_epochs_are_as_many_iterations_longer() -> None:
    wanted = fig10_epochs.wanted(["squeezenet1_1"], False, 5)
    lengths = {w.x: dict(w.cell.recipe)["iterations"] for w in wanted if w.method == "DRM"}
    assert lengths == {1: 25, 4: 100}
    assert {w.cell.deployed for w in wanted} == {(1e-4,)}
