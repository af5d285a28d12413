"""The contract is kept by every accelerator here, and finds each way of breaking it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from accelsim.accelerators import Simulated, build
from accelsim.accelerators.contract import breaches, main
from accelsim.faults import Rates
from accelsim.faults.permanent import Fault, fault_map
from accelsim.int8.network import Int8, Network
from accelsim.timing import Array


@pytest.mark.parametrize("rates", [Rates(), Rates.uniform(1e-4)])
@pytest.mark.parametrize("spec", ["simulated", "simulated:portable", "onnxruntime"])
def test_every_accelerator_keeps_the_contract(spec: str, rates: Rates) -> None:
    if spec == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="pip install 'r2f[onnx]' for the second accelerator")
    assert breaches(build(spec), rates) == []


def test_an_array_with_worn_out_elements_keeps_it_too() -> None:
    worn = fault_map(Array(), [Fault(1, 2, "weight", bit=5, value=1), Fault(3, 4, "accumulator", bit=2, value=0)])
    assert breaches(lambda rates, seed, device: Simulated(rates, seed, device, permanent=worn)) == []


class EagerLoad(Simulated):
    def run_layer(self, index: int, x: Int8, *, iteration: int = 0, replica: int = 0) -> Int8:
        if self._engine is None:
            return x
        return super().run_layer(index, x, iteration=iteration, replica=replica)


class ChannelsFirst(Simulated):
    def run_layer(self, index: int, x: Int8, *, iteration: int = 0, replica: int = 0) -> Int8:
        y = super().run_layer(index, x, iteration=iteration, replica=replica)
        return np.ascontiguousarray(y.transpose(0, 3, 1, 2)).reshape(y.shape)


class Strided(Simulated):
    def run_layer(self, index: int, x: Int8, *, iteration: int = 0, replica: int = 0) -> Int8:
        return np.asfortranarray(super().run_layer(index, x, iteration=iteration, replica=replica))


class Wide(Simulated):
    def run_layer(self, index: int, x: Int8, *, iteration: int = 0, replica: int = 0) -> Int8:
        return super().run_layer(index, x, iteration=iteration, replica=replica).astype(np.int16)  # type: ignore[return-value]


class OneBuffer(Simulated):
    """Hands out the same memory each time, as a driver's buffer would be."""

    def run_layer(self, index: int, x: Int8, *, iteration: int = 0, replica: int = 0) -> Int8:
        y = super().run_layer(index, x, iteration=iteration, replica=replica)
        buffers = self.__dict__.setdefault("buffers", {})
        buffer: Int8 = buffers.setdefault((index, y.shape), y)
        buffer[...] = y
        return buffer


class OneReplica(Simulated):
    def run_replicas(self, index: int, x: Int8, *, iteration: int = 0, count: int = 3, first: int = 0) -> list[Int8]:
        return super().run_replicas(index, x, iteration=iteration, count=count)


class AlwaysThree(Simulated):
    def run_replicas(self, index: int, x: Int8, *, iteration: int = 0, count: int = 3, first: int = 0) -> list[Int8]:
        return super().run_replicas(index, x, iteration=iteration, first=first)


class LastOnly(Simulated):
    def run(self, x: Int8, *, iteration: int = 0) -> list[Int8]:
        return super().run(x, iteration=iteration)[-1:]


class InexactAdd(Simulated):
    def run(self, x: Int8, *, iteration: int = 0) -> list[Int8]:
        outputs = super().run(x, iteration=iteration)
        outputs[3] ^= 1
        return outputs


class LoadsOnce(Simulated):
    def load(self, network: Network) -> None:
        if self._engine is None:
            super().load(network)


class RunsAnything(Simulated):
    def run_layer(self, index: int, x: Int8, *, iteration: int = 0, replica: int = 0) -> Int8:
        if index == 3:
            return x
        return super().run_layer(index, x, iteration=iteration, replica=replica)


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (EagerLoad, "run_layer before load"),
        (ChannelsFirst, r"only \d+% of the outputs are within a step"),
        (Strided, "C-contiguous"),
        (Wide, r"expected int8 of shape \(3, 8, 8, 8\), got int16"),
        (OneBuffer, "the next call changed"),
        (OneReplica, "first 3 are not run_layer's replicas 3 to 4"),
        (AlwaysThree, "3 outputs for count 2"),
        (LastOnly, "1 outputs of 7 layers"),
        (InexactAdd, "a Add must be exact"),
        (LoadsOnce, "loads again: ValueError"),
        (RunsAnything, "that is no MAC layer"),
    ],
)
def test_a_broken_accelerator_is_told_how(broken: type[Simulated], text: str) -> None:
    found = breaches(broken, Rates.uniform(1e-3) if broken is OneReplica else None)
    assert any(re.search(text, sentence) for sentence in found), found


def test_an_input_that_is_changed_is_seen() -> None:
    class Greedy(Simulated):
        def run_layer(self, index: int, x: Int8, *, iteration: int = 0, replica: int = 0) -> Int8:
            x.flags.writeable = True
            y = super().run_layer(index, x, iteration=iteration, replica=replica)
            x[0] ^= 1
            return y

    assert any("its input was changed" in sentence for sentence in breaches(Greedy))


def test_a_device_whose_errors_come_as_they_please_keeps_it() -> None:
    random = np.random.default_rng()

    class Hardware(Simulated):
        def run_layer(self, index: int, x: Int8, *, iteration: int = 0, replica: int = 0) -> Int8:
            y = super().run_layer(index, x, iteration=iteration, replica=replica)
            y.reshape(-1)[random.integers(0, y.size, 3)] ^= 1
            return y

        def run_replicas(self, index: int, x: Int8, *, iteration: int = 0, count: int = 3, first: int = 0) -> list[Int8]:
            return [self.run_layer(index, x, iteration=iteration, replica=first + r) for r in range(count)]

    assert breaches(Hardware) == []


def test_the_command_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("simulated") == 0
    assert capsys.readouterr().out == "simulated keeps the contract\n"
    assert main("simulator") == 1
    assert capsys.readouterr().out.startswith("accelerator 'simulator': expected simulated, ")


def test_a_users_accelerator_is_held_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_r2f_contract.py").write_text(
        "from accelsim.accelerators import Simulated\n"
        "class Silent(Simulated):\n"
        "    def run_replicas(self, index, x, **settings):\n"
        "        return []\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main("mine_r2f_contract:Silent") == 1
    assert "run_replicas(0): 0 outputs for count 3\n" in capsys.readouterr().out
