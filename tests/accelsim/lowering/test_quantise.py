"""Calibration: what int8 costs on real networks, and the parts that keep it low."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accelsim import zoo
from accelsim.accelerators.simulated import Simulated
from accelsim.datasets import IMAGENET_MEAN as MEAN
from accelsim.datasets import IMAGENET_STD as STD
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8.network import INPUT, Activations, Concat, Conv, Network
from accelsim.int8.storage import digest
from accelsim.lowering import fold, lower, normalise, trace
from accelsim.lowering import quantise as quantising
from accelsim.lowering.balance import Balanced
from accelsim.lowering.equalise import equalise, join
from accelsim.lowering.pixels import input_scale, input_table
from experiments.common.trained import TRAINED, float_logits, images_of, int8_logits, module_of, top


def _images(shape: tuple[int, int, int], count: int = 8) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_input_table_is_the_normalisation_within_half_a_step() -> None:
    scale = input_scale(MEAN, STD)
    table = input_table(MEAN, STD, np.full(3, scale))
    pixels = np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    want = normalise(pixels, MEAN, STD)[:, :, 0, 0].numpy().T
    assert np.abs(table * np.float64(scale) - want).max() <= 0.5001 * scale
    assert np.abs(table).max() == 127


def test_an_input_table_of_smaller_steps_clips() -> None:
    steps = np.array([0.01, 0.02, 0.005])
    table = input_table(MEAN, STD, steps).astype(int)
    value = (np.arange(256) / 255 - np.array(MEAN)[:, None]) / np.array(STD)[:, None]
    np.testing.assert_array_equal(table, np.clip(np.rint(value / steps[:, None]), -128, 127))
    assert (table == 127).sum() > 20


def test_for_a_bit_error_rate_the_image_has_steps_of_its_own_and_stays_what_it_was() -> None:
    """Its channels have gains of their own, that the first layer takes back."""
    torch.manual_seed(2)
    first = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        first.weight[:, 1] *= 0.05  # a channel that hardly counts may be coarse
    module = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = _images((16, 16, 3))
    before, after = (lower(module, images, MEAN, STD, ber=ber) for ber in (0.0, 1e-3))
    assert before.input_scale == input_scale(MEAN, STD)
    distinct = [len(np.unique(table)) for table in after.input_table]
    assert distinct[1] < min(distinct[0], distinct[2]) / 2
    exact = module(normalise(images, MEAN, STD)).detach().numpy()
    for network in (before, after):
        y = Engine(network).run(network.quantize_images(images))[-1].reshape(len(images), -1) * network.layers[-1].scale
        assert np.square(y - exact).mean() < 0.1 * np.square(exact - exact.mean(0)).mean()


def _shufflenet() -> Network:
    torch.manual_seed(0)
    return lower(zoo.build("shufflenet_v2_x0_5", 10).eval(), _images((32, 32, 3)), MEAN, STD)


@pytest.fixture(scope="module")
def shufflenet() -> Network:
    return _shufflenet()


def test_the_same_images_give_the_same_network(shufflenet: Network) -> None:
    assert digest(_shufflenet()) == digest(shufflenet)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "resnet20", "digits_cnn"])
def test_gains_leave_the_function(name: str) -> None:
    """Random gains, through residual sums, concats, shuffles, pools, ReLU6: the output is the same, the tensors are not."""
    torch.manual_seed(4)
    shape = (8, 8, 1) if name == "digits_cnn" else (32, 32, 3)
    module = zoo.build(name, 10).eval()
    before = fold(trace(module, shape))
    joined = join(before, image=True)
    octaves = torch.where(joined.fixed, 0, torch.randn(len(joined.fixed)).double())
    assert float((octaves != 0).float().mean()) > 0.5
    after = equalise(before, {index: octaves[of].exp2() for index, of in joined.of.items()})
    x = normalise(_images(shape), MEAN[: shape[2]], STD[: shape[2]])
    with torch.no_grad():
        *inner, (_, want) = before.run(x)
        *others, (_, got) = after.run(x * octaves[joined.of[INPUT]].exp2().float()[:, None, None])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
    for (index, left), (_, right) in zip(inner, others, strict=True):
        gain = octaves[joined.of[index]].exp2().float()[:, None, None]
        torch.testing.assert_close(right, left * gain, rtol=1e-3, atol=1e-4 * float(left.abs().max() * gain.max()))


def test_bias_correction_takes_up_the_rounded_weights() -> None:
    """With weights that all round the same way, each channel's mean output still is the float one."""
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 2, 4, bias=True)).eval()
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.fill_(2.5)
        module[2].weight.fill_(0.0149)
        module[2].weight[:, 0, 0, 0] = 1.0
        module[2].bias.zero_()
    images = _images((8, 8, 1), 16)
    network = lower(module, images, MEAN[:1], STD[:1])
    with torch.no_grad():
        want = module(normalise(images, MEAN[:1], STD[:1])).mean((0, 2, 3)).numpy()
    last = network.layers[-1]
    got = Engine(network).run(network.quantize_images(images))[-1].mean((0, 1, 2)) * last.scale
    assert isinstance(last, Conv)
    steps = np.abs(np.rint(0.0149 / last.weight_scale) * last.weight_scale - 0.0149)
    shift = steps * 15 * float(want.mean())  # about what the mean would be off by without correction
    assert np.all(np.abs(got - want) < np.maximum(0.25 * shift, 0.3 * last.scale))


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 3)).eval()
    with torch.no_grad():
        module[0].weight[1] = 0
        module[0].bias[:] = torch.tensor([0.0, 0.75, -0.5])
    images = _images((8, 8, 1))
    network = lower(module, images, (0.5,), (0.5,))
    y = Engine(network).run(network.quantize_images(images))[-1] * network.layers[-1].scale
    assert np.abs(y[..., 1] - 0.75).max() <= 0.5001 * network.layers[-1].scale


def test_operands_that_only_a_concat_reads_have_its_scale(shufflenet: Network) -> None:
    concats = [layer for layer in shufflenet.layers if isinstance(layer, Concat)]
    assert all(1.0 in layer.multipliers for layer in concats)


def test_int8_costs_at_most_a_point_on_cifar(shared_dir: Path) -> None:
    images, _ = images_of("resnet20", shared_dir, "train")
    module = module_of("resnet20", shared_dir)
    network = lower(module, images[:64], MEAN, STD, "resnet20")
    test, labels = images_of("resnet20", shared_dir, "test")
    exact = top(float_logits(module, test), labels)[0]
    rough = top(int8_logits(network, test), labels)[0]
    assert exact > 90
    assert rough >= exact - 1.0


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_int8_agrees_with_float_on_photographs(shared_dir: Path, name: str) -> None:
    """A quick look; docs/networks.md has the whole validation set, by experiments.int8_accuracy."""
    assert TRAINED[name].num_classes == 1000
    images, _ = images_of(name, shared_dir, "train")
    module = module_of(name, shared_dir)
    network = lower(module, images[:12], MEAN, STD, name)
    test, labels = images_of(name, shared_dir, "test")
    exact, rough = float_logits(module, test[:32]), int8_logits(network, test[:32])
    assert (exact.argmax(1) == rough.argmax(1)).mean() >= 0.75
    assert top(rough, labels[:32])[1] >= top(exact, labels[:32])[1] - 5


def _uneven() -> nn.Module:
    """Dense layers behind one channel with most of its tensor's range; nothing in them is depthwise."""
    torch.manual_seed(5)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(216, 8)
    )
    with torch.no_grad():
        for front, behind in ((0, 2), (2, 4)):
            module[front].weight[0] *= 60
            module[front].bias[0] *= 60
            module[behind].weight[:, 0] /= 60
    return module.eval()


@pytest.mark.parametrize("ber", [0.0, 1e-4, 1e-3])
def test_channels_of_uneven_ranges_cost_little(ber: float) -> None:
    """On images that calibration did not see: gains find what was pulled apart, and flips harm less for them."""
    module, images = _uneven(), _images((12, 12, 3), 64)
    with torch.no_grad():
        want = module(normalise(images[32:], MEAN, STD)).numpy()

    def lost(activations: Activations) -> float:
        network = lower(module, images[:32], MEAN, STD, activations=activations, ber=ber)
        x, last, total = network.quantize_images(images[32:]), network.layers[-1], 0.0
        for seed in range(3):
            device = Simulated(Rates.uniform(ber), seed)
            device.load(network)
            y = device.run(x)[-1].reshape(want.shape) * last.scale
            total += float(((y - want) ** 2).sum())
        return total

    assert lost("auto") < 0.5 * lost("signed")


def test_candidates_are_judged_on_images_that_no_derivative_was_taken_on() -> None:
    images = torch.arange(80.0).reshape(-1, 1, 1, 1)
    judges = quantising._judges(images).flatten().tolist()
    assert len(judges) == 32
    assert not set(judges) & set(quantising._trial(80).tolist())
    few = images[:40]  # eight are left: too few to say anything
    assert quantising._judges(few).flatten().tolist() == quantising._trial(40).tolist()


def test_without_faults_no_gains_win_where_gains_mislead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gains come with steps far too coarse they are not taken; for a bit error rate there is no such choice."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 3)).eval()
    images = np.random.default_rng(0).integers(0, 256, (64, 12, 12, 3), np.uint8)
    graph = fold(trace(module, (12, 12, 3)))
    balance = quantising.balance

    def misled(*given: Any, gains: bool, image: bool) -> Balanced:
        found = balance(*given, gains=gains, image=image)
        return Balanced(found.gains, {i: s * 64 if i != INPUT else s for i, s in found.scales.items()}) if gains else found

    monkeypatch.setattr(quantising, "balance", misled)
    chosen = quantising.quantise(graph, images, MEAN, STD, "x", quantising.Aim())
    without = quantising.quantise(graph, images, MEAN, STD, "x", quantising.Aim(gains=False))
    assert digest(chosen) == digest(without)
    assert {gains for _, gains in quantising._candidates(quantising.Aim(ber=1e-4))} == {True}
    assert {gains for _, gains in quantising._candidates(quantising.plain(graph))} == {False}


def test_the_number_of_threads_does_not_change_the_network() -> None:
    """A machine with more cores makes the same network, though torch adds up in another order there."""
    torch.manual_seed(3)
    module, images = zoo.build("digits_cnn", 10).eval(), _images((8, 8, 1), 80)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(digest(lower(module, images, (0.5,), (0.25,), ber=1e-3)))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert len(set(found)) == 1
