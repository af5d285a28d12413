"""What the device keeps for repairs: enough to correct any layer that is not confirmed, and no more."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Activation, Conv, Network, UInt8
from accelsim.lowering import lower
from services.codec.core import layers, repair
from services.codec.core.bodies import CodecError
from services.codec.core.kept import Kept


@pytest.fixture(scope="module")
def images() -> UInt8:
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["resnet20", "shufflenet_v2_x0_5"])
def network(request: pytest.FixtureRequest, images: UInt8) -> Network:
    """Residual sums, and branches that are split, moved and joined again."""
    torch.manual_seed(0)
    module = zoo.build(request.param, 10).eval()
    return lower(module, np.tile(images, (4, 1, 1, 1)), (0.5,) * 3, (0.25,) * 3, name=request.param)


def passed(network: Network, images: UInt8) -> tuple[dict[int, Activation], dict[int, Activation], dict[int, Activation]]:
    """Actual outputs of all layers, votes that are wrong here and there, and what the server makes of it all."""
    engine, generator = Engine(network), np.random.default_rng(1)
    actual: dict[int, Activation] = {INPUT: network.quantize_images(images)}
    votes: dict[int, Activation] = {}
    rights: dict[int, Activation] = {}
    for index, layer in enumerate(network.layers):
        right = engine.fault_free(index, [actual[i] for i in layer.inputs])
        actual[index] = right
        if isinstance(layer, Conv):
            actual[index] = np.where(generator.random(right.shape) < 0.02, right + right.dtype.type(7), right)
            votes[index] = np.where(generator.random(right.shape) < 0.01, right - right.dtype.type(1), right)
            rights[index] = right
    return actual, votes, rights


def fill(kept: Kept, actual: dict[int, Activation], votes: dict[int, Activation]) -> None:
    for index, vote in votes.items():
        body = layers.encode(actual[index], kept.reference(index, vote), "chained")
        kept.keep(index, actual[index], body)


@pytest.mark.parametrize("confirmed", [0.0, 0.3, 0.7])
def test_every_layer_that_is_not_confirmed_can_be_corrected(network: Network, images: UInt8, confirmed: float) -> None:
    actual, votes, rights = passed(network, images)
    kept = Kept(network, "auto", 0, network.quantize_images(images))
    fill(kept, actual, votes)
    order = sorted(votes)
    done = order[: int(confirmed * len(order))]
    before = kept.nbytes
    if done:
        kept.confirm(done[-1])
        assert kept.nbytes < before
    for index in order[len(done) :: 4]:
        rebuilt = rights[index] + (actual[index] - votes[index])
        digests = repair.channel_digests(rebuilt).astype("<u4").tobytes()
        body = kept.correct(index, digests)[index]
        np.testing.assert_array_equal(repair.apply(body, rebuilt), actual[index])
    first = order[len(done)]
    for index, body in kept.correct(first, None).items():
        rebuilt = rights[index] + (actual[index] - votes[index])
        np.testing.assert_array_equal(repair.apply(body, rebuilt), actual[index])
    # From now on nothing can be wrong.
    np.testing.assert_array_equal(kept.reference(first, votes[first]), rights[first])


def test_confirming_step_by_step_leaves_only_what_is_read_later(network: Network, images: UInt8) -> None:
    actual, votes, _ = passed(network, images)
    whole, kept = (
        Kept(network, "auto", 0, network.quantize_images(images)),
        Kept(network, "auto", 0, network.quantize_images(images)),
    )
    fill(whole, actual, votes)
    most = 0
    for index in sorted(votes):
        kept.keep(index, actual[index], layers.encode(actual[index], votes[index], "chained"))
        most = max(most, kept.nbytes)
        kept.confirm(index)
    assert most < whole.nbytes / 2
    assert kept.nbytes < whole.nbytes / 10


def test_what_is_not_kept_is_refused(network: Network, images: UInt8) -> None:
    actual, votes, _ = passed(network, images)
    kept = Kept(network, "auto", 5, network.quantize_images(images))
    first, second, *_ = sorted(votes)
    with pytest.raises(CodecError, match="not kept"):
        kept.confirm(first)
    kept.keep(first, actual[first], layers.encode(actual[first], votes[first], "chained"))
    for layer in (-1, second, 10**9):
        with pytest.raises(CodecError, match=f"layer {layer} of iteration 5 is not kept"):
            kept.correct(layer, None)
        with pytest.raises(CodecError, match=f"layer {layer} of iteration 5 is not kept"):
            kept.confirm(layer)
    kept.confirm(first)
    with pytest.raises(CodecError, match="not kept"):
        kept.correct(first, None)


def test_a_layer_sent_as_it_is_needs_no_correction(network: Network, images: UInt8) -> None:
    actual, votes, _ = passed(network, images)
    kept = Kept(network, "auto", 0, network.quantize_images(images))
    for index in sorted(votes):
        kept.keep(index, actual[index], layers.encode(actual[index], None, "chained"))
    assert kept.correct(min(votes), None) == {}
