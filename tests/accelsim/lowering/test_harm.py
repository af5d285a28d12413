"""The harm of a choice of steps: its slope, what it says of measured errors, and the least of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from accelsim.datasets import IMAGENET_MEAN as MEAN
from accelsim.datasets import IMAGENET_STD as STD
from accelsim.engine import Engine
from accelsim.int8.network import INPUT
from accelsim.lowering import fold, lower, normalise, trace
from accelsim.lowering.balance import balance, widest
from accelsim.lowering.emit import Choice
from accelsim.lowering.equalise import join
from accelsim.lowering.graph import Graph
from accelsim.lowering.harm import FLIPS, Harm, feel, harm, prepare
from accelsim.lowering.ranges import watch
from accelsim.lowering.rehearse import rehearse
from accelsim.lowering.signs import levels, unsigned
from accelsim.lowering.tie import tie
from accelsim.lowering.weights import correct_bias, quantise_weight


def _images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(6).integers(0, 256, (count, 10, 10, 3)).astype(np.uint8)


def _graph(slope: bool = False) -> Graph:
    torch.manual_seed(1)
    act = nn.LeakyReLU() if slope else nn.ReLU()
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), act, nn.Conv2d(8, 8, 3, groups=2), nn.ReLU6(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 6)
    )
    return fold(trace(module.eval(), (10, 10, 3)))


def _model(graph: Graph, ber: float) -> Harm:
    x = normalise(_images(), MEAN, STD)
    with torch.no_grad():
        return prepare(graph, watch(graph, x), feel(graph, x), levels(graph, unsigned(graph)), ber, {})


def test_a_flip_of_each_bit_is_21845_steps_squared_signed_or_not() -> None:
    for dtype in (np.int8, np.uint8):
        values = np.arange(256).astype(np.uint8)
        flipped = (values[:, None] ^ (1 << np.arange(8)).astype(np.uint8)).view(dtype).astype(int)
        assert set(((flipped - values.view(dtype).astype(int)[:, None]) ** 2).sum(1)) == {FLIPS} == {21845}


@pytest.mark.parametrize("ber", [0.0, 1e-3])
def test_slope(ber: float) -> None:
    """Against differences, where some channels are clipped and others are not."""
    model = _model(_graph(), ber)
    model.squares, model.felt, model.clipped, model.first = (
        v.double() for v in (model.squares, model.felt, model.clipped, model.first)
    )
    for read in model.weights:
        read.largest, read.felt = read.largest.double(), read.felt.double()
    generator = torch.Generator().manual_seed(0)
    steps = model.first + 7 + 2 * torch.rand(len(model.first), generator=generator, dtype=torch.float64)
    _, slope = harm(model, steps, 3.0)
    for _ in range(5):
        way = torch.randn(len(steps), generator=generator, dtype=torch.float64)
        measured = (harm(model, steps + 1e-6 * way, 3.0)[0] - harm(model, steps - 1e-6 * way, 3.0)[0]) / 2e-6
        assert float(slope @ way) == pytest.approx(measured, rel=1e-3)


def _balanced(graph: Graph, ber: float) -> tuple[Choice, float]:
    """A choice for a graph, and the harm that is expected of it."""
    x = normalise(_images(), MEAN, STD)
    seen, felt, tensors = watch(graph, x), feel(graph, x, draws=8), levels(graph, unsigned(graph))
    model, joined, tied = prepare(graph, seen, felt, tensors, ber, {}), join(graph, image=False), tie(graph, unsigned(graph))
    found = balance(model, widest(seen, tensors, 0.02), joined, tied, 1.0, gains=False, image=False)
    weights = {
        i: quantise_weight(graph.nodes[i], found.scales[graph.nodes[i].inputs[0]], felt.weights[i], ber)  # type: ignore[arg-type]
        for i in felt.weights
    }
    biases = {i: correct_bias(graph.nodes[i], w, seen[graph.nodes[i].inputs[0]].mean) for i, w in weights.items()}  # type: ignore[arg-type]
    steps = torch.cat([torch.full((graph.shape_of(i)[2],), found.scales[i]) for i in tied]).log2()
    image = torch.full((3,), found.scales[INPUT], dtype=torch.float64)
    return Choice(graph, tensors, found.scales, weights, biases, image), harm(model, steps, 1.0)[0]


@pytest.mark.parametrize("ber", [0.0, 1e-4])
def test_expected_harm_is_about_what_a_rehearsal_loses(ber: float) -> None:
    graph, x = _graph(), normalise(_images(), MEAN, STD)
    with torch.no_grad():
        choice, expected = _balanced(graph, ber)
        *_, (_, exact) = graph.run(x)
        length = (exact - exact.mean(0)).square().sum((1, 2, 3))
        lost = [
            float(((y - exact).square().sum((1, 2, 3)) / length).mean())
            for seed in range(200 if ber else 1)
            for y in rehearse(choice, x, ber, seed)
        ]
    assert 0.4 < float(np.mean(lost)) / expected < 2.5


def test_a_rehearsal_without_faults_is_the_engine() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1)).eval()
    kept = []

    def keep(choice: Choice, *rest: object) -> object:
        kept.append(choice)
        return rehearse(choice, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelsim.lowering.quantise.rehearse", keep)
        patch.setattr("accelsim.lowering.quantise._CARES", (1.0,))
        network = lower(module, _images(), MEAN, STD)
    y = Engine(network).run(network.quantize_images(_images()))[-1].astype(np.float32) * network.layers[-1].scale
    with torch.no_grad():
        (got,) = rehearse(kept[0], normalise(_images(), MEAN, STD))
    assert np.abs(got.permute(0, 2, 3, 1).numpy() - y).max() <= 1.001 * network.layers[-1].scale


def test_what_cannot_be_negative_is_unsigned() -> None:
    def types(module: nn.Module) -> list[bool]:
        network = lower(module.eval(), _images(), MEAN, STD)
        return [layer.signed for layer in network.layers]

    torch.manual_seed(1)
    conv = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)]
    assert types(nn.Sequential(conv[0], nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))) == [False] * 3 + [True]
    assert types(nn.Sequential(conv[0], nn.Sigmoid(), nn.AvgPool2d(2), conv[1])) == [True, False, False, True]
    assert types(nn.Sequential(conv[0], nn.Hardswish(), conv[2], nn.ReLU6())) == [True, True, False]
    assert types(nn.Sequential(conv[0], nn.Hardtanh(), conv[2])) == [True, True]


def test_flips_count_as_far_as_they_travel_and_the_image_only_with_them() -> None:
    graph, x = _graph(), normalise(_images(), MEAN, STD)
    with torch.no_grad():
        seen, felt, tensors = watch(graph, x), feel(graph, x), levels(graph, unsigned(graph))
        once, more = (prepare(graph, seen, felt, tensors, 1e-2, further) for further in ({}, {INPUT: 10.0, 0: 3.0}))
        without = prepare(graph, seen, felt, tensors, 0.0, {})
    image, first = once.places[INPUT], once.places[0]
    gained = 9 * FLIPS * 1e-2 * felt.operands[0]
    torch.testing.assert_close(more.squares[image] - once.squares[image], gained, rtol=1e-3, atol=0.0)
    read = felt.operands[next(i for i in felt.operands if graph.nodes[i].inputs[0] == 0)]
    gained = 2 * FLIPS * 1e-2 * (felt.results[0] + read)
    torch.testing.assert_close(more.squares[first] - once.squares[first], gained, rtol=1e-3, atol=0.0)
    assert not without.squares[image].any()
    assert not without.felt[image].any()


def test_images_that_are_all_alike_give_a_network() -> None:
    """Its outputs do not differ, so nothing is large or small beside their spread."""
    for seed in (52, 57):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
        network = lower(module, np.zeros((45, 8, 8, 1), np.uint8), (0.0,), (0.001,), "alike", ber=2e-3)
        assert np.isfinite([layer.scale for layer in network.layers]).all()
