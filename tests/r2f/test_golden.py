"""The paper's own way through the services: direct, and increments against a TMR run beside the actual one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from accelsim.faults import Rates
from r2f.settings import Settings
from services.scheme import Redundancy, Scheme
from services.trainer.core import ledger, result
from services.trainer.core.ledger import Row
from services.trainer.core.task import PAPER, Sgd
from tests.r2f import served

pytestmark = pytest.mark.timeout(240)

SETTINGS = Settings(
    network="digits_cnn",
    rates=Rates(input=3e-4, weight=3e-4, output=3e-4),
    iterations=3,
    sgd=Sgd(rate=0.02),
    recipe=PAPER,
    labels="device",
    evaluation_seeds=1,
    evaluation_samples=32,
)
PIXELS = 16 * 8 * 8


def rows(prepare: Callable[[Settings, Path], None], folder: Path, scheme: Scheme) -> list[Row]:
    settings = msgspec.structs.replace(SETTINGS, scheme=scheme)
    prepare(settings, folder)
    served.retrained(folder)
    return ledger.read(folder / result.PROGRESS)


@pytest.fixture(scope="module")
def direct(prepare: Callable[[Settings, Path], None], tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return rows(prepare, tmp_path_factory.mktemp("direct") / "run", Scheme(codec="direct", float_inputs=True))


@pytest.mark.parametrize("redundancy", ["layer", "network"])
def test_golden_sends_increments_and_what_is_dissimilar_as_it_is(
    redundancy: Redundancy, direct: list[Row], prepare: Callable[[Settings, Path], None], tmp_path: Path
) -> None:
    golden = Scheme(codec="golden", vote="bitwise", redundancy=redundancy, float_inputs=True, theta=0.0)
    increments = rows(prepare, tmp_path / "increments", golden)
    whole = rows(prepare, tmp_path / "whole", msgspec.structs.replace(golden, theta=1.0))
    for found in (increments, whole, direct):
        assert [row.iteration for row in found] == [0, 1, 2]
        # Four bytes a pixel, each time, and little else.
        assert all(4 * PIXELS < row.uplink_inputs < 4 * PIXELS + 1000 for row in found)
    for one, other, plain in zip(increments, whole, direct, strict=True):
        assert plain.elements < plain.uplink_layers < plain.elements + 1000
        assert plain.mismatched == 0
        assert one.uplink_layers < 0.7 * plain.uplink_layers
        # Hardly a layer is wholly like its vote: nearly all go as they are, and what goes so is right. Layer-wise each layer
        # waits for its vote, so it has a message of its own.
        assert one.uplink_layers < other.uplink_layers < plain.uplink_layers + 2000
        assert other.mismatched <= one.mismatched
