"""The server's own faulty pass: the device's arithmetic, and gradients of what was really multiplied."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from accelsim.engine import Engine, reference
from accelsim.faults import Key, Rates, draw
from accelsim.int8.network import INPUT, Conv, Network
from services.scheme import CHAINED, Port, Scheme
from services.trainer.core.drawn import faulty_pass
from services.trainer.core.loss import Targets
from services.trainer.core.replay import replay
from tests.services.trainer.core import images

RATES = Rates(input=5e-3, weight=5e-3, output=5e-3)


def given(network: Network) -> np.ndarray:
    return network.quantize_images(images.data("images").train_images[:4])


def passed(network: Network, scheme: Scheme = CHAINED, rates: Rates = RATES):
    return faulty_pass(Engine(network), given(network), rates, scheme, 3, "server", 7)


def test_is_the_reference_under_the_flips_that_were_drawn() -> None:
    network = images.network()
    outputs, inside = passed(network)
    values = {INPUT: given(network)}
    for index, layer in enumerate(network.layers):
        taken = [values[i] for i in layer.inputs]
        if not isinstance(layer, Conv):
            values[index] = reference.layer(layer, taken)
            continue
        x = taken[0]
        flips = draw(
            RATES, Key(3, "server", 7, index, 0), inputs=x.size, weights=layer.weight.size,
            outputs=len(x) * int(np.prod(layer.shape)),
        )  # fmt: skip
        assert min(len(flips.input), len(flips.weight), len(flips.output)) > 0, "the test itself is blind"
        values[index] = reference.replica(layer, x, flips)
        assert np.array_equal(outputs[index], values[index])
        assert np.array_equal(inside.weights[index], reference.flip(layer.weight, flips.weight))
        assert np.array_equal(inside.read[index], reference.flip(x, flips.input))
        assert np.array_equal(reference.flip(inside.computed[index], flips.output), values[index])


def test_gradients_are_those_of_what_was_multiplied() -> None:
    """By torch.autograd through the flipped weights, at the flipped inputs, gated by what came before the output's flips."""
    network = images.network()
    outputs, inside = passed(network)
    engine = Engine(network)
    last = len(network.layers) - 1
    wanted = Targets(np.zeros((4, *network.layers[last].shape), np.float32))
    found = replay(network, given(network), outputs, wanted, engine.fault_free, inside)
    pairs = list(network.convs())
    assert len(pairs) == len(network.layers), "the test knows a chain of MAC layers"
    value = torch.tensor(given(network)).permute(0, 3, 1, 2).double() * network.input_scale
    leaves = []
    for index, layer in pairs:
        step = network.scale_of(layer.inputs[0])
        read = torch.tensor(inside.read[index]).permute(0, 3, 1, 2).double() * step
        value = read + value - value.detach()
        scale = torch.tensor(layer.weight_scale).double()[:, None, None, None]
        weight = (torch.tensor(inside.weights[index]).double() * scale).requires_grad_()
        leaves.append(weight)
        y = F.conv2d(value, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        if layer.low == 0:
            computed = torch.tensor(inside.computed[index]).permute(0, 3, 1, 2)
            y = torch.where(computed > 0, y, y.detach())
        struck = torch.tensor(outputs[index]).permute(0, 3, 1, 2).double() * layer.scale
        value = struck + y - y.detach()
    slopes = torch.autograd.grad(value.square().mean(), leaves)
    for (index, _), slope in zip(pairs, slopes, strict=True):
        assert float(slope.abs().max()) > 0
        torch.testing.assert_close(found.gradients[index][0].double(), slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max()))
    plain = replay(network, given(network), outputs, wanted, engine.fault_free)
    assert any(not torch.allclose(plain.gradients[i][0], found.gradients[i][0], rtol=1e-3) for i, _ in pairs)


def test_what_is_voted_on_is_not_struck() -> None:
    network = images.network()
    first = next(index for index, _ in network.convs())
    layer = network.layers[first]
    assert isinstance(layer, Conv)
    outputs, inside = passed(network, Scheme(protected=(first,)))
    assert np.array_equal(outputs[first], reference.layer(layer, [given(network)]))
    _, inside = passed(network, Scheme(ports=(Port(first, "weight"),)))
    _, bare = passed(network)
    assert np.sum(inside.weights[first] != layer.weight) < np.sum(bare.weights[first] != layer.weight)


@pytest.mark.parametrize("rates", [Rates()])
def test_without_rates_nothing_is_struck(rates: Rates) -> None:
    network = images.network()
    outputs, _ = passed(network, rates=rates)
    clean = Engine(network).run(given(network))
    assert all(np.array_equal(outputs[index], clean[index]) for index, _ in network.convs())
