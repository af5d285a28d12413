"""Faults of an accelerator: soft errors, and worn-out processing elements (``accelsim.faults.permanent``)."""

from __future__ import annotations

import numpy as np

from accelsim.faults.soft import (
    SOFT_ERRORS,
    Burst,
    FaultModel,
    Flips,
    Key,
    Rates,
    Site,
    SoftErrors,
    checked,
    distinct,
    draw,
    majority,
)
from accelsim.named import users

__all__ = [
    "SOFT_ERRORS",
    "Burst",
    "FaultModel",
    "Flips",
    "Key",
    "Rates",
    "Site",
    "SoftErrors",
    "build",
    "distinct",
    "draw",
    "majority",
]


def build(spec: str) -> FaultModel:
    """A fault model by its name: ``soft``, ``burst``, ``burst:`` and a length in bits, or ``package.module:function``.

    A user's function is looked for from the current folder too and takes nothing; a class will do. Its model is tried on a
    tensor of 8000 bits. Raises ValueError where there is no such model, or it fails, or breaks the contract of ``FaultModel``.
    """
    name, colon, rest = spec.partition(":")
    if spec == "soft":
        return SOFT_ERRORS
    if name == "burst" and not (colon and not rest):
        if rest and not rest.isdecimal():
            raise ValueError(f"fault model {spec!r}: expected a length in bits, as in burst:4")
        return Burst(int(rest)) if rest else Burst()
    if not colon or not name or not rest:
        raise ValueError(f"fault model {spec!r}: expected soft, burst, burst:LENGTH, or package.module:function")
    function = users("fault model", spec)
    try:
        model: FaultModel = function()
        found = model.positions(np.random.Generator(np.random.Philox(key=0)), 8000, 0.01)
    except Exception as error:  # the user's own code runs here
        raise ValueError(
            f"fault model {spec!r}: it fails: {type(error).__name__}: {error}; expected a function of nothing that returns "
            "an accelsim.faults.FaultModel"
        ) from error
    try:
        checked(found, 8000)
    except ValueError as error:
        raise ValueError(f"fault model {spec!r}: {error}") from error
    return model
