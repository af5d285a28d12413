"""``plan.json``: what a search chose to protect in a network, and why; ``r2f retrain --protect plan.json`` takes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from accelsim.faults import Rates
from accelsim.files import write_whole
from accelsim.int8 import storage
from accelsim.int8.network import Network
from r2f.protection.words import Cost, Grain, Search
from services.scheme import Port, Redundancy, Scheme, Vote, check

FILE = "plan.json"
FORMAT: Final = "r2f-protection/2"
"""A plan of the first version is read: all its choices are for the one network."""


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """What faults at one layer, or at one site of it, do to a network without any others."""

    layer: int
    name: str
    site: str
    """Empty for the whole layer."""
    cost: float
    """Of protecting it, as a share of the network's cycles."""
    agreement: float
    """Images, in per cent, that are still answered as the fault-free network does."""
    loss: float
    """Cross-entropy against the fault-free answer beyond the fault-free network's own."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What is protected within one budget."""

    budget: Annotated[float, msgspec.Meta(gt=0)]
    """What it may cost, as a share of an unprotected run; 2 is TMR of everything."""
    overhead: float
    """What it costs."""
    layers: tuple[int, ...] = ()
    """In TMR, in the order in which they were chosen."""
    ports: tuple[Port, ...] = ()
    tmr: Redundancy | None = None
    uncertain: Annotated[int, msgspec.Meta(ge=0)] = 0
    """As in ``services.scheme.Scheme``; the overhead counts the share of the searched images that it runs again."""
    quantised_for: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of the error rates that the network that it is for is quantised for."""
    sha256: str = ""
    """Of that int8 network; empty for the plan's."""
    agreement: tuple[float, ...]
    """Measured, on the searched images; one number a fault seed."""

    def applied(self, scheme: Scheme) -> Scheme:
        """``scheme`` with this protection and no other."""
        layers = tuple(sorted(self.layers))
        return msgspec.structs.replace(
            scheme, protected=layers, ports=self.ports, tmr=self.tmr, uncertain=self.uncertain
        )  # fmt: skip


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    format: Literal["r2f-protection/1", "r2f-protection/2"] = FORMAT
    network: str
    sha256: str
    """Of the int8 network that was searched first (``accelsim.int8.storage.digest``); what is measured unprotected and layer
    by layer is measured of that one."""
    quantised_for: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of the error rates that it is quantised for."""
    rates: Rates
    vote: Vote
    search: Search
    units: Grain
    cost: Cost
    batch: int
    images: int
    seeds: tuple[int, ...]
    unprotected: tuple[float, ...]
    """Agreement without protection."""
    evaluations: float
    """What the search took, in evaluations of all its images under all its fault seeds."""
    sensitivities: tuple[Sensitivity, ...]
    choices: tuple[Choice, ...]
    """By rising budget."""

    def choice(self, budget: float | None = None) -> Choice:
        """That of a budget, the smallest where none is named. Raises ValueError naming those there are."""
        by_budget = sorted(self.choices, key=lambda one: one.budget)
        for one in by_budget:
            if budget is None or abs(one.budget - budget) < 1e-9:
                return one
        known = ", ".join(f"{100 * one.budget:g} %" for one in by_budget)
        raise ValueError(f"no budget of {100 * (budget or 0):g} % in it; it has {known}")


def write(folder: Path, plan: Plan) -> Path:
    """Puts the plan into a folder; returns its path."""
    path = folder / FILE
    write_whole(path, msgspec.json.format(msgspec.json.encode(plan)) + b"\n")
    return path


def read(path: Path) -> Plan:
    """A plan that ``write`` wrote. Raises ValueError that names the file and what is wrong."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, UnicodeDecodeError, RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path}: {error}; expected a plan that r2f protect wrote") from error
    if not plan.choices:
        raise ValueError(f"{path}: it protects nothing, for no budget; make it anew with r2f protect")
    return plan


def named(text: str) -> tuple[Path, float | None]:
    """File and budget (a share) of ``FILE.json`` or ``FILE.json@50%``. Raises ValueError for a budget that is none."""
    path, at, budget = text.rpartition("@")
    if not at or not path.endswith(".json"):
        return Path(text), None
    return Path(path), share(budget)


def share(text: str) -> float:
    """``20%`` or ``0.2`` as 0.2. Raises ValueError for anything that is no share above 0."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"budget {text!r}: expected a share of the network's cycles, such as 20%")
    return value


def chosen(path: Path, budget: float | None) -> tuple[Plan, Choice]:
    """A plan and its choice for a budget, the smallest where that is None. Raises ValueError, which names the file."""
    plan = read(path)
    try:
        return plan, plan.choice(budget)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def scheme_for(path: Path, budget: float | None, scheme: Scheme, network: Network) -> Scheme:
    """``scheme`` with a plan's protection, for the network that the plan is of.

    Raises ValueError, which names the file, where it is no plan, is of another network, or has no such budget.
    """
    plan, choice = chosen(path, budget)
    meant, found = choice.sha256 or plan.sha256, storage.digest(network)
    if meant != found:
        ber = "/".join(f"{rate:g}" for rate in (plan.rates.input, plan.rates.weight, plan.rates.output))
        raise ValueError(
            f"{path}: it is for another network: {plan.network} with sha256 {meant[:16]}..., quantised for "
            f"{100 * choice.quantised_for:g} % of the BER {ber} at inputs/weights/outputs, and this is {network.name} "
            f"with {found[:16]}...; run r2f protect with the settings (network, weights, data, BER) of this run"
        )
    try:
        protected = choice.applied(scheme)
        check(protected, network)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return protected
