"""What several tests of whole runs share: the demo's float network, trained once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from accelsim import zoo
from accelsim.datasets import load
from r2f import float_training, prepare
from r2f.display import Display
from r2f.settings import DEMO_NETWORK, Settings
from services.trainer.core import job


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    """The demo's network, trained as the demo does it."""
    return float_training.train(lambda: zoo.build(DEMO_NETWORK, classes=10), load("digits"))


@pytest.fixture(scope="session")
def weights(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its weights as a file."""
    path = tmp_path_factory.mktemp("weights") / "digits_cnn.safetensors"
    save_file(trained.state_dict(), path)
    return str(path)


@pytest.fixture(scope="session", name="prepare")
def prepare_run(weights: str) -> Callable[[Settings, Path], None]:
    """Makes a run's folder with those weights, and a trainer that asks again for what was lost after five seconds."""

    def prepared(settings: Settings, folder: Path) -> None:
        with Display(Console(quiet=True)) as live:
            prepare.prepare(msgspec.structs.replace(settings, weights=weights), folder, live)
        job.write(folder, msgspec.structs.replace(job.read(folder), patience_s=5.0))

    return prepared
