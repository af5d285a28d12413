"""Costs that are easy to check by hand, and float networks that are trained from nothing once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from accelsim.datasets import Dataset
from experiments.common.costs import BERS, LINKS, METHODS, Cost, Method, Stages
from r2f import float_training


@pytest.fixture(scope="session", autouse=True)
def _trained_once() -> Iterator[None]:
    """Training gives the same each time (tests/r2f/test_float_training.py), so nobody has to wait for it a second time."""
    known: dict[tuple[Any, ...], nn.Module] = {}
    train = float_training.train

    def once(build: Callable[[], nn.Module], data: Dataset, **settings: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            shape = str(build())
        hashes = [hashlib.sha256(array.tobytes()).digest() for array in (data.train_images, data.train_labels)]
        key = (shape, *hashes, data.mean, data.std, *sorted(settings.items()))
        if key not in known:
            known[key] = train(build, data, **settings)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(float_training, "train", once)
        yield


def cost(network: str, ber: float, link: str, method: Method) -> Cost:
    """Direct takes 100 s and 1000 bytes, the paper's method half of that, ours 4 and 2 %; B's take twice of everything."""
    part = {"drm": 1.0, "lossless": 0.04, "jpeg": 0.02, "known": 0.01}.get(method, 0.5)
    size = {"A": 1.0, "B": 2.0}[network]
    seconds = {
        "forward": 8,
        "tmr": 1,
        "increment": 2,
        "coding": 3,
        "uplink": 70,
        "backward": 10,
        "downlink": 6,
        "overlapped": 90,
    }
    return Cost(
        network=network,
        random_weights=network == "A",
        ber=ber,
        link=link,
        method=method,
        layers_bytes=int(900 * part * size),
        input_bytes=int(100 * part * size),
        model_bytes=10,
        bound_bytes=1.0,
        mismatched_share=0.0,
        round_trips=0,
        referee_share=0.0,
        executions=3.0,
        layers_direct=0,
        stages=Stages(**{stage: value * part * size for stage, value in seconds.items()}),
    )


@pytest.fixture
def costs() -> list[Cost]:
    return [cost(n, ber, link, method) for n in ("A", "B") for ber in BERS for link in LINKS for method in METHODS]
