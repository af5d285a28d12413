"""Checkpoints as people save them: wrappers, prefixes, computed weights, several files; what cannot be read says why."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from accelsim import zoo
from accelsim.zoo import WeightsError


def _same(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "net": lambda s: {"net": s, "acc": np.float64(93.1)},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}},
    "state_dict": lambda s: {"state_dict": s, "best": np.float32(0.5)},
    "model within state_dict": lambda s: {"state_dict": {"model": s}},
    "the same under two keys": lambda s: {"model": s, "net": dict(s)},
    "settings under model": lambda s: {"model": {"depth": 20, "width": {"stem": 16}}, "net": s},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "model.": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    "_orig_mod.": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "both prefixes": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "averaged": lambda s: {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}},
    "a part wrapped": lambda s: {k.replace("blocks.", "blocks.module."): v for k, v in s.items()},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_checkpoint_is_read_however_it_is_wrapped(tmp_path: Path, case: str) -> None:
    state = zoo.build("digits_cnn").state_dict()
    path = tmp_path / "w.pth"
    torch.save(WRAPPED[case](dict(state)), path)
    module = zoo.load("digits_cnn", path)
    assert _same(module, state)
    assert not module.training


def test_a_state_dict_may_have_any_suffix(tmp_path: Path) -> None:
    state = zoo.build("digits_cnn").state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.bin")
    torch.save(state, tmp_path / "w.ckpt")
    assert all(_same(zoo.load("digits_cnn", tmp_path / name), state) for name in ("w.bin", "w.ckpt"))


def test_safetensors_in_parts_are_read_by_their_index(tmp_path: Path) -> None:
    state = zoo.build("digits_cnn").state_dict()
    names = list(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, keys in parts.items():
        safetensors.torch.save_file({k: state[k] for k in keys}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {k: part for part, keys in parts.items() for k in keys}}))
    assert _same(zoo.load("digits_cnn", index), state)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"names model-00002-of-00002\.safetensors, which is not beside it"):
        zoo.load("digits_cnn", index)
    index.write_text('{"weight_map": {"a": "../else.safetensors"}}')
    with pytest.raises(WeightsError, match=r"else\.safetensors: parts lie in"):
        zoo.load("digits_cnn", index)
    index.write_text("[]")
    with pytest.raises(WeightsError, match="no weight_map"):
        zoo.load("digits_cnn", index)


def _weight_norm_old(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    "change", [lambda m: prune.l1_unstructured(m, "weight", 0.4), _weight_norm_old, parametrizations.weight_norm]
)
def test_computed_weights_become_the_weights(tmp_path: Path, change: Callable[[nn.Module], nn.Module]) -> None:
    source = zoo.build("digits_cnn").eval()
    for part in ("stem", "fc"):
        change(source.get_submodule(part))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    module = zoo.load("digits_cnn", tmp_path / "w.pth")
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(module(x), source(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", ["digits_cnn", "resnet20", "squeezenet1_1", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_a_zoo_network_has_the_files_number_of_classes(tmp_path: Path, network: str) -> None:
    state = {f"module.{k}": v for k, v in zoo.build(network, 3).state_dict().items()}
    path = tmp_path / "w.pth"
    torch.save(state, path)
    side, channels = (8, 1) if network == "digits_cnn" else (32, 3)
    with torch.no_grad():
        assert zoo.load(network, path)(torch.zeros(1, channels, side, side)).shape == (1, 3)
        assert zoo.load(network, path, classes=3)(torch.zeros(1, channels, side, side)).shape == (1, 3)
    with pytest.raises(WeightsError, match="3 classes, where 10 are needed"):
        zoo.load(network, path, classes=10)


def test_no_weights_are_random_ones() -> None:
    module = zoo.load("digits_cnn", None, classes=4)
    assert module.fc.out_features == 4
    assert not module.training


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


PREFIXES = (
    "backbone.", "net.", "network.", "encoder.", "student.", "module.backbone.", "model.module._orig_mod.",
    "my.own.deep.place.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("network", ["digits_cnn", "mobilenet_v2"])
def test_any_prefix_that_has_all_of_the_network_is_its_own(tmp_path: Path, network: str, prefix: str) -> None:
    state = zoo.build(network, 3).state_dict()
    torch.save({"state_dict": _below(prefix, state)}, tmp_path / "w.ckpt")
    assert _same(zoo.load(network, tmp_path / "w.ckpt"), state)


LIGHTNING = {
    "epoch": 3, "global_step": 120, "pytorch-lightning_version": "2.4.0", "hyper_parameters": {"lr": 0.1, "name": "x"},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}], "lr_schedulers": [],
    "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "best_k_models": {}}}, "loops": {},
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "student.net."])
def test_what_lies_outside_of_the_networks_prefix_is_left_out_and_said(tmp_path: Path, prefix: str) -> None:
    """As Lightning saves a module that has a loss, a metric and an average beside its network."""
    state = zoo.build("digits_cnn").state_dict()
    others = {"criterion.weight": torch.ones(10), "ema.decay": torch.tensor(0.9), "_metric": torch.full((1,), torch.inf)}
    path = tmp_path / "last.ckpt"
    torch.save({**LIGHTNING, "state_dict": {**others, **_below(prefix, state)}}, path)
    said: list[str] = []
    assert _same(zoo.load("digits_cnn", path, say=said.append), state)
    assert said == [f"{path}: read what lies under {prefix} as the network; left out: criterion.weight, ema.decay, _metric"]
    with pytest.warns(UserWarning, match="left out: criterion"):
        zoo.load_weights(zoo.build("digits_cnn"), path)


def test_a_larger_teacher_has_all_names_of_the_network_too(tmp_path: Path) -> None:
    state, teacher = (zoo.build(name).state_dict() for name in ("resnet20", "resnet56"))
    assert set(state) < set(teacher)
    path = tmp_path / "w.pth"
    torch.save({**_below("teacher.", teacher), **_below("student.", state)}, path)
    with pytest.raises(WeightsError, match=r"under teacher\., student\.; save the one that is meant alone"):
        zoo.load("resnet20", path)
    assert _same(zoo.load("resnet56", path, say=lambda text: None), teacher)


def test_the_average_alone_is_read_and_its_count_left_out(tmp_path: Path) -> None:
    state = zoo.build("digits_cnn").state_dict()
    torch.save({**_below("ema_model.module.", state), "ema_model.n_averaged": torch.tensor(3)}, tmp_path / "w.pth")
    said: list[str] = []
    assert _same(zoo.load("digits_cnn", tmp_path / "w.pth", say=said.append), state)
    assert said[0].endswith("under ema_model.module. as the network; left out: ema_model.n_averaged")


def test_folded_and_pruned_weights_below_a_prefix(tmp_path: Path) -> None:
    source = zoo.build("digits_cnn").eval()
    prune.l1_unstructured(source.stem, "weight", 0.4)
    parametrizations.weight_norm(source.fc)
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("bn1.")} | {"stem.bias": torch.zeros(16)}
    torch.save(_below("lit.net.", state) | {"loss.weight": torch.ones(1)}, tmp_path / "w.pth")
    said: list[str] = []
    module = zoo.load("digits_cnn", tmp_path / "w.pth", say=said.append)
    torch.testing.assert_close(module.fc.weight, source.fc.weight)
    assert torch.equal(module.stem.weight, source.stem.weight)
    assert len(said) == 1


def _quantised(state: dict[str, Tensor]) -> Any:
    return {k: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8) if k == "fc.weight" else v for k, v in state.items()}


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "quantised": (_quantised, r"quantised network \(fc\.weight\).*float weights"),
    "packed": (lambda s: {**s, "fc._packed_params.dtype": torch.qint8}, r"quantised network \(fc\._packed_params"),
    "integers": (
        lambda s: {k: v.to(torch.int8) if k == "fc.weight" else v for k, v in s.items()},
        r"quantised.*fc\.weight int8",
    ),
    "no tensors": (lambda s: {"epoch": 3, "loss": 0.1}, r"no state dict.*epoch, loss.*model_state_dict"),
    "empty": (lambda s: {}, r"no state dict.*empty"),
    "a list": (lambda s: [v for v in s.values()], r"no state dict.*list"),  # noqa: C416
    "another wrapper": (lambda s: {"student": s}, r"not tensors are student"),
    "another network": (
        lambda s: {k.replace("stem", "entry"): v for k, v in s.items()},
        r"does not fit DigitsCNN: missing: stem\.weight; unexpected: entry\.weight$",
    ),
    "a loss beside bare names": (
        lambda s: {**s, "criterion.weight": torch.ones(10)},
        r"unexpected: criterion\.weight; leave out of the file what is not the network's",
    ),
    "a loss within the prefix": (
        lambda s: {f"model.{k}": v for k, v in {**s, "loss_fn.pos_weight": torch.ones(10), "_metric": torch.ones(1)}.items()},
        r"does not fit DigitsCNN under model\.: unexpected: loss_fn\.pos_weight, _metric",
    ),
    "two networks": (
        lambda s: {"model": s, "net": {k: v + 1 for k, v in s.items()}},
        r"holds several networks, under model, net; save the state dict of one",
    ),
    "two of different parts": (
        lambda s: {"state_dict": s, "weights": {"loss": torch.ones(3)}},
        r"several networks, under state_d",
    ),
    "student and teacher": (
        lambda s: {f"{who}.{k}": v for who in ("student", "teacher") for k, v in s.items()},
        r"holds 2 networks of these names, under student\., teacher\.; save the one .* k\.startswith\('student\.'\)",
    ),
    "bare and averaged": (
        lambda s: {**s, **{f"ema.module.{k}": v + 1 for k, v in s.items()}},
        r"holds 2 networks of these names, under no prefix, ema\.; .*startswith\('ema\.'\)",
    ),
    "trained and averaged": (
        lambda s: {**_below("model.", s), **_below("ema_model.module.", s), "ema_model.n_averaged": torch.tensor(3)},
        r"holds 2 networks of these names, under model\., ema_model\.module\.;",
    ),
    "a head of its own": (
        lambda s: {("head." if k.startswith("fc.") else "backbone.") + k: v for k, v in s.items()},
        r"does not fit DigitsCNN under backbone\.: missing: fc\.weight, fc\.bias; outside of it: head\.fc\.weight, head",
    ),
    "a head of no prefix": (
        lambda s: {k if k.startswith("fc.") else f"backbone.{k}": v for k, v in s.items()},
        r"under backbone\.: missing: fc\.weight, fc\.bias; outside of it: fc\.weight, fc\.bias",
    ),
    "wrapped and not": (
        lambda s: {**s, "stem.module.weight": s["stem.weight"]},
        r"tensors twice, wrapped and not: stem\.module\.weight",
    ),
    "a number among tensors": (lambda s: {**_below("model.", s), "_metric": 0.5}, r"not tensors are _metric"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_names_the_keys(tmp_path: Path, case: str) -> None:
    make, text = REFUSED[case]
    path = tmp_path / "w.pth"
    torch.save(make(dict(zoo.build("digits_cnn").state_dict())), path)
    with pytest.raises(WeightsError, match=text) as caught:
        zoo.load("digits_cnn", path)
    assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("content", [b"hello", b"hello, this is a longer text\n" * 20, b"", b"\x80\x02garbage"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"w\.pth is neither safetensors nor a checkpoint of plain tensors: \w{2}"
    ) as refused:
        zoo.load("digits_cnn", tmp_path / "w.pth")
    assert "weights_only" not in str(refused.value), "nobody is told to run its code"


def test_whole_modules_are_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(zoo.build("digits_cnn"), path)
    with pytest.raises(WeightsError, match=r"Python objects \(accelsim\.zoo\.digits\.DigitsCNN\).*state_dict\(\)"):
        zoo.load("digits_cnn", path)
    with pytest.raises(WeightsError, match=re.escape("w.pth")):
        zoo.load("digits_cnn", tmp_path)


def test_a_network_that_does_not_build_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_r2f_test.py").write_text(
        "from torch import nn\ndef pair(): return nn.Conv2d(1, 8, 3), 10\nclass Net(nn.Module): pass\n"
        "def kind(): return Net\ndef fails(): return nn.Linear(2)\n"
    )
    (tmp_path / "broken_r2f_test.py").write_text("import no_such_package_here\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *__import__("sys").path])
    for network, text in {
        "own_r2f_test:pair": "returned tuple, expected",
        "own_r2f_test:kind": "returned the class Net, not one of it",
        "own_r2f_test:fails": "it fails to build: TypeError",
        "broken_r2f_test:x": "No module named 'no_such_package_here'",
    }.items():
        with pytest.raises(ValueError, match=text):
            zoo.build(network)


@pytest.mark.parametrize("dim", [0, 1, 3, None])
def test_weight_norm_along_any_dimension(tmp_path: Path, dim: int | None) -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3), dim=dim))
    path = tmp_path / "normed.pth"
    torch.save(module.state_dict(), path)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3))
    zoo.load_weights(plain, path)
    torch.testing.assert_close(plain[0].weight, module[0].weight)


def test_a_length_that_is_not_of_its_direction_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save({"0.weight_g": torch.ones(5, 1, 1, 1), "0.weight_v": torch.ones(8, 3, 3, 3), "0.bias": torch.zeros(8)}, path)
    with pytest.raises(WeightsError, match=r"0\.weight: weight norm's length is \(5, 1, 1, 1\)"):
        zoo.load_weights(nn.Sequential(nn.Conv2d(3, 8, 3)), path)
