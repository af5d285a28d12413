from __future__ import annotations

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.int8.network import Network, UInt8
from accelsim.lowering import lower


@pytest.fixture(scope="session")
def digits() -> UInt8:
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="session")
def small(digits: UInt8) -> Network:
    """Four MAC layers and what is between them."""
    torch.manual_seed(0)
    return lower(zoo.build("digits_cnn", 10).eval(), np.tile(digits, (4, 1, 1, 1)), (0.5,), (0.5,), name="small")
