"""What the loop's benchmark runs: our recipe, or the paper's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import loop
from services.trainer.core.task import PAPER, Recipe
from tests.quick import few_rounds


@pytest.mark.parametrize("paper", [False, True])
def test_both_sides_have_the_recipe_that_was_asked_for(paper: bool, tmp_path: Path) -> None:
    with few_rounds():
        network, job, settings = loop.make(tmp_path, 3, paper=paper)
    assert job.recipe == settings.recipe == (PAPER if paper else Recipe())
    assert (job.labels == "device") == paper
    assert job.iterations == 3
    assert all(layer.dtype == np.int8 for _, layer in network.convs()) == paper
