"""Plans on the disk: what is written is read, and a plan for another network is refused by its digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import INPUT, Conv, Network
from r2f.protection import plan
from r2f.protection.plan import Choice, Plan
from services.scheme import Port, Scheme

LAYER = Conv(
    name="conv", inputs=(INPUT,), shape=(1, 1, 4), scale=1.0, weight=np.ones((4, 4, 1, 1), np.int8), bias=np.zeros(4, np.int32),
    weight_scale=np.ones(4, np.float32), multiplier=np.ones(4, np.float32), high=np.full(4, 127, np.int32),
)  # fmt: skip
NETWORK = Network(
    name="one", input_shape=(1, 1, 4), input_scale=1.0, input_table=np.zeros((4, 256), np.int8), layers=(LAYER,)
)  # fmt: skip
PLAN = Plan(
    network="one", sha256=storage.digest(NETWORK), rates=Rates.uniform(1e-4), vote="median", search="estimated", units="sites",
    cost="cycles", batch=16, images=10, seeds=(1, 2), unprotected=(50.0, 60.0), evaluations=3.5, sensitivities=(),
    choices=(
        Choice(budget=0.2, overhead=0.1, ports=(Port(0, "weight"),), agreement=(70.0, 72.0)),
        Choice(budget=2.0, overhead=2.0, layers=(0,), tmr="layer", uncertain=5, agreement=(90.0, 91.0)),
    ),
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = plan.write(tmp_path, PLAN)
    assert path == tmp_path / "plan.json"
    assert plan.read(path) == PLAN


def test_a_plan_of_the_first_version_is_for_one_network(tmp_path: Path) -> None:
    old = msgspec.json.decode(msgspec.json.encode(PLAN)) | {"format": "r2f-protection/1"}
    del old["quantised_for"]
    for choice in old["choices"]:
        del choice["quantised_for"], choice["sha256"]
    path = tmp_path / "old.json"
    path.write_bytes(msgspec.json.encode(old))
    assert plan.read(path) == msgspec.structs.replace(PLAN, format="r2f-protection/1")
    assert plan.scheme_for(path, None, Scheme(), NETWORK) == Scheme(ports=(Port(0, "weight"),))


def test_each_choice_is_for_its_own_network(tmp_path: Path) -> None:
    other = replace(NETWORK, layers=(replace(LAYER, bias=np.ones(4, np.int32)),))
    small, large = PLAN.choices
    of_other = msgspec.structs.replace(large, quantised_for=0.5, sha256=storage.digest(other))
    path = plan.write(tmp_path, msgspec.structs.replace(PLAN, choices=(small, of_other)))
    assert plan.scheme_for(path, 2.0, Scheme(), other).protected == (0,)
    plan.scheme_for(path, 0.2, Scheme(), NETWORK)
    for budget, wrong in ((2.0, NETWORK), (0.2, other)):
        with pytest.raises(ValueError, match="for another network"):
            plan.scheme_for(path, budget, Scheme(), wrong)


def test_the_smallest_budget_is_taken_where_none_is_named(tmp_path: Path) -> None:
    turned = msgspec.structs.replace(PLAN, choices=PLAN.choices[::-1])
    path, base = plan.write(tmp_path, turned), Scheme(codec="direct", protected=(7,))
    assert plan.scheme_for(path, None, base, NETWORK) == Scheme(codec="direct", ports=(Port(0, "weight"),))
    assert plan.scheme_for(path, 2.0, base, NETWORK) == Scheme(codec="direct", protected=(0,), tmr="layer", uncertain=5)
    with pytest.raises(ValueError, match=r"plan\.json: no budget of 50 % in it; it has 20 %, 200 %"):
        plan.scheme_for(path, 0.5, base, NETWORK)


def test_a_plan_for_another_network_is_refused_by_its_digest(tmp_path: Path) -> None:
    path = plan.write(tmp_path, PLAN)
    other = replace(NETWORK, layers=(replace(LAYER, bias=np.ones(4, np.int32)),))
    with pytest.raises(ValueError, match=rf"plan\.json: it is for another network: one .*{PLAN.sha256[:16]}.*r2f protect"):
        plan.scheme_for(path, None, Scheme(), other)


def test_a_plan_that_names_what_is_not_there_is_refused(tmp_path: Path) -> None:
    wrong = msgspec.structs.replace(PLAN, choices=(Choice(budget=0.2, overhead=0.1, layers=(3,), agreement=(1.0,)),))
    with pytest.raises(ValueError, match=r"plan\.json: layer 3 cannot be protected"):
        plan.scheme_for(plan.write(tmp_path, wrong), None, Scheme(), NETWORK)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"format": "r2f-protection/3"}',
        b'{"a":' + b"[" * 200_000,
        b'{"network": "\xff\xfe"}',
        msgspec.json.encode(msgspec.structs.replace(PLAN, choices=())),
    ],
)
def test_what_is_no_plan_is_named(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(body)
    with pytest.raises(ValueError, match=r"mine\.json: .*r2f protect"):
        plan.read(path)
    with pytest.raises(ValueError, match=r"none\.json: .*No such file"):
        plan.read(tmp_path / "none.json")


def test_names_of_plans() -> None:
    assert plan.named("a/plan.json") == (Path("a/plan.json"), None)
    assert plan.named("me@home/plan.json") == (Path("me@home/plan.json"), None)
    assert plan.named("plan.json@50%") == (Path("plan.json"), 0.5)
    assert plan.named("plan.json@0.2") == (Path("plan.json"), 0.2)
    for wrong in ("plan.json@", "plan.json@much", "plan.json@-5%", "plan.json@0", "plan.json@nan"):
        with pytest.raises(ValueError, match="expected a share of the network's cycles"):
            plan.named(wrong)
