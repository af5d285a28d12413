"""Fault models by name, and what is said where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from accelsim.faults import SOFT_ERRORS, Burst, Key, Rates, build, draw

MINE = """
import numpy as np
from accelsim.faults import SOFT_ERRORS

class Supply:
    def positions(self, generator, bits, rate):
        found = SOFT_ERRORS.positions(generator, bits, rate)
        return found[(found & 7) >= 4]

class Floats:
    def positions(self, generator, bits, rate):
        return np.array([1.0])

class Lists:
    def positions(self, generator, bits, rate):
        return [1]

class Outside:
    def positions(self, generator, bits, rate):
        return np.array([bits])

class Fails:
    def positions(self, generator, bits, rate):
        return 1 / 0

class Other: ...

def of_one(length): ...
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"faults_r2f_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_names() -> None:
    assert build("soft") is SOFT_ERRORS
    assert build("burst") == Burst()
    assert build("burst:9") == Burst(9)


def test_a_users_own_by_its_module(mine: str) -> None:
    model = build(f"{mine}:Supply")
    found = draw(Rates(output=0.1), Key(0, "d", 0, 0, 0), inputs=0, weights=0, outputs=1000, model=model).output
    assert len(found) > 300
    assert ((found & 7) >= 4).all()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Floats", "flat int64 array, got float64"),
        ("Lists", "flat int64 array, got list"),
        ("Outside", r"not sorted, distinct and in 0\.\.7999"),
        ("Fails", "it fails: ZeroDivisionError: division by zero"),
        ("Other", "has no attribute 'positions'"),
        ("of_one", "missing 1 required positional argument"),
        ("absent", "no 'absent' in .*py"),
    ],
)
def test_a_users_own_that_breaks_the_contract_is_named(mine: str, name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        build(f"{mine}:{name}")
    assert str(caught.value).startswith(f"fault model '{mine}:{name}': ")


@pytest.mark.parametrize("spec", ["", "hard", "burst:", "burst:x", "burst:0", "soft:1", ":f", "os:", "no_such_r2f:f"])
def test_what_is_no_fault_model_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"expected|must be 1 or more"):
        build(spec)
