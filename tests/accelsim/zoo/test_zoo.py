"""The zoo: sizes and names of the official networks, and checkpoints that fit or say why not."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from accelsim import zoo
from accelsim.zoo import WeightsError

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "shufflenet_v2_x0_5": 1_366_792,
    "shufflenet_v2_x1_0": 2_278_604,
    "squeezenet1_1": 1_235_496,
    "resnet20": 269_722,
    "resnet56": 853_018,
    "digits_cnn": 3_610,
    "dcgan": 2_668_096,
    "sngan": 3_804_739,
    "artgan": 13_018_019,
    "gp_gan": 71_058_944,
    "monodepth": 31_600_072,
    "fast_style_transfer": 1_677_635,
    "unet": 31_037_698,
    "dcgan_faces": 3_576_704,
    "waifu2x": 552_483,
    "shapes_unet": 66_268,
    "crops_sr2x": 13_395,
}
# Convolutions, and whether a linear layer comes on top. Table III counts 57 for ShuffleNet, which includes it.
LAYERS = {
    "resnet18": (20, 1),
    "resnet50": (53, 1),
    "mobilenet_v2": (52, 1),
    "shufflenet_v2_x0_5": (56, 1),
    "shufflenet_v2_x1_0": (56, 1),
    "squeezenet1_1": (26, 0),
    "resnet20": (19, 1),
    "resnet56": (55, 1),
    "digits_cnn": (9, 1),
    "dcgan": (0, 0),
    "sngan": (1, 0),
    "artgan": (2, 0),
    "gp_gan": (5, 0),
    "monodepth": (25, 0),
    "fast_style_transfer": (14, 0),
    "unet": (19, 0),
    "dcgan_faces": (0, 0),
    "waifu2x": (6, 0),
    "shapes_unet": (11, 0),
    "crops_sr2x": (3, 0),
}
# A few of torchvision's (and akamaster's) names, with shapes: ends of the networks and the odd places.
NAMES = {
    "resnet18": {"layer2.0.downsample.0.weight": (128, 64, 1, 1), "layer4.1.bn2.running_var": (512,), "fc.bias": (1000,)},
    "resnet50": {"layer1.0.conv3.weight": (256, 64, 1, 1), "layer3.5.bn3.weight": (1024,), "fc.weight": (1000, 2048)},
    "mobilenet_v2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.17.conv.3.running_mean": (320,),
        "features.18.1.bias": (1280,),
        "classifier.1.weight": (1000, 1280),
    },
    "shufflenet_v2_x0_5": {
        "conv1.0.weight": (24, 3, 3, 3),
        "stage2.0.branch1.2.weight": (24, 24, 1, 1),
        "stage3.7.branch2.6.running_mean": (48,),
        "conv5.1.weight": (1024,),
        "fc.weight": (1000, 1024),
    },
    "shufflenet_v2_x1_0": {"stage4.0.branch2.3.weight": (232, 1, 3, 3), "stage2.3.branch2.5.weight": (58, 58, 1, 1)},
    "squeezenet1_1": {"features.12.expand3x3.weight": (256, 64, 3, 3), "classifier.1.bias": (1000,)},
    "resnet20": {"layer2.0.conv1.weight": (32, 16, 3, 3), "linear.weight": (10, 64)},
    "resnet56": {"layer3.8.bn2.weight": (64,)},
}


@pytest.mark.parametrize("name", list(zoo.NETWORKS))
def test_sizes_and_names_are_the_official_ones(name: str) -> None:
    with torch.device("meta"):
        module = zoo.build(name)
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS[name]
    kinds = [type(m) for m in module.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.Linear)) == LAYERS[name]
    state = module.state_dict()
    assert {k: tuple(state[k].shape) for k in NAMES.get(name, {})} == NAMES.get(name, {})


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "resnet18", "resnet20"])
def test_num_classes_reaches_the_output(name: str) -> None:
    with torch.no_grad():
        assert zoo.build(name, 7).eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(("name", "shape"), [("shapes_unet", (2, 4, 8, 12)), ("crops_sr2x", (2, 3, 16, 24))])
def test_networks_for_images_come_back_from_their_weights(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """One has classes and the other none."""
    module = zoo.build(name).eval()
    safetensors.torch.save_file(module.state_dict(), tmp_path / "weights.safetensors")
    x = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        again = zoo.load(name, tmp_path / "weights.safetensors")(x)
        assert again.shape == shape
        torch.testing.assert_close(again, module(x), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_loads_as_it_is(tmp_path: Path, suffix: str, prefix: str) -> None:
    source, target = zoo.build("digits_cnn"), zoo.build("digits_cnn")
    state = {prefix + k: v + 1 for k, v in source.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        safetensors.torch.save_file(state, path)
    zoo.load_weights(target, path)
    for key, value in source.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(target.state_dict()[key], value + 1)


def test_a_misfit_names_its_tensors(tmp_path: Path) -> None:
    module = zoo.build("digits_cnn")
    state = dict(module.state_dict())
    state["extra"] = state.pop("fc.bias")
    state["pointwise.weight"] = torch.zeros(3, 3)
    state["bn1.weight"] = torch.full((16,), torch.nan)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(state, path)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        zoo.load_weights(module, path)
    text = str(caught.value)
    assert "missing: fc.bias" in text
    assert "unexpected: extra" in text
    assert "misshaped: pointwise.weight (3, 3) for (32, 16, 1, 1)" in text
    assert "not finite: bn1.weight" in text
    assert str(path) in text
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize("body", [b"", b"not weights at all", b"\xff" * 64])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_foreign_file_is_one_clear_error(tmp_path: Path, body: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(body)
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        zoo.load_weights(zoo.build("digits_cnn"), path)


def test_a_pickled_object_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (Path.write_text, (str(marker), "x"))

    path = tmp_path / "w.pth"
    torch.save({"a": Hostile()}, path)
    with pytest.raises(WeightsError):
        zoo.load_weights(zoo.build("digits_cnn"), path)
    assert not marker.exists()


def test_folded_batch_norm_gives_the_same_function(tmp_path: Path) -> None:
    """A file without batch norm, its convolutions with biases instead, is the network whose batch norm was folded."""
    torch.manual_seed(0)
    module = zoo.build("mobilenet_v2", 5).eval()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.1)
    leaves = [(n, m) for n, m in module.named_modules() if not list(m.children())]
    folded = {}
    for (name, conv), (_, norm) in itertools.pairwise(leaves):
        if isinstance(conv, nn.Conv2d):
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            short = re.sub(r"^features\.(0|18)\.0$", r"features.\1", name)
            first = 0 if name.startswith("features.1.") else 1
            parts = {"0.0": "expand" if first else "dw", f"{first}.0": "dw", f"{first + 1}": "project"}
            short = re.sub(r"conv\.(.*)$", lambda match, parts=parts: parts[match.group(1)], short)
            folded[f"{short}.weight"] = (conv.weight * factor[:, None, None, None]).detach()
            folded[f"{short}.bias"] = (norm.bias - norm.running_mean * factor).detach()
    folded["classifier.weight"], folded["classifier.bias"] = (p.detach() for p in module.classifier[1].parameters())
    assert "features.1.dw.bias" in folded
    assert "features.5.project.weight" in folded
    path = tmp_path / "folded.safetensors"
    safetensors.torch.save_file(folded, path)
    other = zoo.build("mobilenet_v2", 5).eval()
    zoo.load_weights(other, path)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other(x), module(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet20", "cifar10_resnet20"),
        ("resnet56", "cifar10_resnet56"),
        ("squeezenet1_1", "squeezenet1_1"),
        ("mobilenet_v2", "mobilenet_v2_bnfolded"),
    ],
)
def test_real_checkpoints_load(shared_dir: Path, name: str, file: str) -> None:
    module = zoo.build(name)
    before = next(module.parameters()).clone()
    zoo.load_weights(module, shared_dir / "weights" / f"{file}.safetensors")
    assert not torch.equal(before, next(module.parameters()))


def test_a_users_network_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_r2f_test.py").write_text(
        "from torch import nn\n"
        "def build(num_classes=3):\n    return nn.Linear(2, num_classes)\n"
        "def plain():\n    return nn.Linear(2, 9)\n"
        "def wrong():\n    return 3\n"
        "value = 4\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    assert zoo.build("mine_r2f_test:build", 5).out_features == 5
    assert zoo.build("mine_r2f_test:build").out_features == 3
    assert zoo.build("mine_r2f_test:plain", 5).out_features == 9
    with pytest.raises(ValueError, match=r"returned int.*torch\.nn\.Module"):
        zoo.build("mine_r2f_test:wrong")
    for spec in ("mine_r2f_test:value", "mine_r2f_test:absent", "no_such_package_r2f:build", "mine_r2f_test:"):
        with pytest.raises(ValueError, match=re.escape(repr(spec))):
            zoo.build(spec)
    with pytest.raises(ValueError, match="resnet18"):
        zoo.build("resnet19")
