"""What is waited for behind a real link: no less than it takes for the largest that crosses it at once."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from broker.link.clock import transfer_s
from broker.link.profiles import PROFILES
from r2f import run
from r2f.patience import SILENCE_S, silence_s
from r2f.settings import Settings
from services.trainer.patience import Patience

LIVE = Settings(network="squeezenet1_1", live=True, link="lora", batch=16)


@pytest.fixture(scope="module")
def large() -> Network:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    module = zoo.build("squeezenet1_1", 1000).eval()
    return lower(module, images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), name="squeezenet1_1")


@pytest.mark.parametrize("link", list(PROFILES))
def test_a_large_network_goes_over_every_link_before_the_device_is_called_silent(link: str, large: Network) -> None:
    """By the link's clock: model, images and a layer's outputs raw. Over the thinnest, model and outputs each take longer than
    all attempts where there is no link."""
    patience = silence_s(msgspec.structs.replace(LIVE, link=link), large)
    profile = PROFILES[link]
    model = transfer_s("r2f/v1/edge-0/down/model", len(storage.to_bytes(large)), profile, "down")
    images = transfer_s("r2f/v1/edge-0/up/inputs", 16 * 64 * 64 * 3, profile, "up")
    layer = transfer_s("r2f/v1/edge-0/up/layers", 16 * 31 * 31 * 64, profile, "up")
    assert patience >= SILENCE_S + max(model, images, layer)
    assert patience < SILENCE_S + 1.1 * (model + images + layer)
    if link == "lora":
        assert min(model, layer) > Patience().seconds * Patience().attempts


def test_where_no_link_is_real_nobody_waits_for_one(large: Network) -> None:
    assert silence_s(Settings(), large) == SILENCE_S
    assert silence_s(Settings(link="lora"), large) == SILENCE_S, "a clock alone"
    assert silence_s(Settings(link="lora", broker="mqtt://elsewhere"), large) > 300
    plain = silence_s(LIVE, large)
    doubled = silence_s(msgspec.structs.replace(LIVE, batch=32), large)
    floats = silence_s(msgspec.structs.replace(LIVE, scheme=msgspec.structs.replace(LIVE.scheme, float_inputs=True)), large)
    images = 16 * math.prod(large.input_shape) * 8 / PROFILES["lora"].up
    assert floats - plain == pytest.approx(3 * images, rel=0.1)
    assert doubled > plain + images


def test_both_ends_of_a_real_link_know_its_rate() -> None:
    assert run.link_rates(LIVE) == ({"R2F_LINK_BITS_PER_S": "50000.0"}, {"R2F_LINK_BITS_PER_S": "50000.0"})
    hspa = run.link_rates(msgspec.structs.replace(LIVE, link="hspa"))
    assert hspa == ({"R2F_LINK_BITS_PER_S": "5760000.0"}, {"R2F_LINK_BITS_PER_S": "21100000.0"})
    assert run.link_rates(Settings()) == run.link_rates(Settings(link="lora")) == ({}, {})
