"""Accelerators by name, and what is said where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from accelsim.accelerators import Simulated, build
from accelsim.faults import Burst, Rates

MINE = """
from accelsim.accelerators import Simulated

class Own:
    def __init__(self, rates, seed, device):
        self.given = rates, seed, device
    def load(self, network): ...
    def run_layer(self, index, x, *, iteration=0, replica=0): ...
    def run_replicas(self, index, x, *, iteration=0, count=3, first=0): ...
    def run(self, x, *, iteration=0): ...

def with_model(rates, seed, device, fault_model=None):
    return Simulated(rates, seed, device, fault_model=fault_model)

def of_the_class(rates, seed, device):
    return Own

def of_nothing(rates, seed, device):
    return object()

def fails(rates, seed, device):
    raise OSError("/dev/npu0: no such device")

def of_one(rates): ...

value = 4
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_r2f_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_simulated_takes_rates_seed_device_path_and_model() -> None:
    made = build("simulated:portable", Burst(3))(Rates(weight=0.5), 7, "d")
    assert isinstance(made, Simulated)
    assert (made.rates, made.seed, made.device, made.path, made.fault_model) == (
        Rates(weight=0.5),
        7,
        "d",
        "portable",
        Burst(3),
    )
    plain = build("simulated")(Rates(), 0, "d")
    assert isinstance(plain, Simulated)
    assert plain.path == "auto"


def test_onnxruntime_takes_them_too() -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'r2f[onnx]' for the second accelerator")
    made = build("onnxruntime", Burst(3))(Rates(weight=0.5), 7, "d")
    assert type(made).__name__ == "OnnxAccelerator"
    assert (made.rates, made.seed, made.device, made.fault_model) == (Rates(weight=0.5), 7, "d", Burst(3))  # type: ignore[attr-defined]


def test_onnxruntime_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelsim.accelerators.onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="accelerator 'onnxruntime': "):
        build("onnxruntime")


def test_a_users_own_by_its_module(mine: str) -> None:
    made = build(f"{mine}:Own")(Rates(weight=0.5), 7, "d")
    assert made.given == (Rates(weight=0.5), 7, "d")  # type: ignore[attr-defined]
    taken = build(f"{mine}:with_model", Burst(2))(Rates(), 1, "d")
    assert taken.fault_model == Burst(2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("of_the_class", "returned the class Own, not one of it; expected an accelsim.accelerators.Accelerator"),
        ("of_nothing", "returned object, without load, run_layer, run_replicas, run; expected an"),
        ("fails", "it fails to build: OSError: /dev/npu0: no such device"),
    ],
)
def test_what_a_users_function_returns_is_looked_at(mine: str, function: str, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        build(f"{mine}:{function}")(Rates(), 0, "d")
    assert repr(f"{mine}:{function}") in str(caught.value)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("of_one", "too many positional arguments"),
        ("value", "value is not a function in .*py"),
        ("absent", "no 'absent' in .*py"),
    ],
)
def test_a_users_function_is_looked_at_before_it_is_called(mine: str, function: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build(f"{mine}:{function}")


def test_a_fault_model_is_not_given_to_what_has_no_use_for_it(mine: str) -> None:
    with pytest.raises(ValueError, match="takes no fault model"):
        build(f"{mine}:Own", Burst(2))


@pytest.mark.parametrize(
    "spec",
    ["", "simulator", "simulated:", "simulated:fast", "simulated:cuda:0", ":build", "onnxruntime:x", "no_such_r2f:x", "os:"],
)
def test_what_is_no_accelerator_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        build(spec)
