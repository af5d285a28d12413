"""Accelerators that a device drives: the protocol, the simulated one, and others by name."""

from __future__ import annotations

import inspect

from accelsim.accelerators.protocol import Accelerator, Factory, Ports, PortVoter, Timed, vote_at
from accelsim.accelerators.simulated import Simulated
from accelsim.engine import choose
from accelsim.faults import SOFT_ERRORS, FaultModel, Rates
from accelsim.faults.permanent import FaultMap
from accelsim.named import users

__all__ = ["Accelerator", "Factory", "PortVoter", "Ports", "Simulated", "Timed", "build", "vote_at"]

_METHODS = ("load", "run_layer", "run_replicas", "run")


def build(spec: str, model: FaultModel = SOFT_ERRORS, permanent: FaultMap | None = None) -> Factory:
    """Accelerators by name: ``simulated``, ``simulated:`` and an engine path, ``onnxruntime``, or ``package.module:function``.

    A user's function is looked for from the current folder too, and is called as a ``Factory`` is; if it has a parameter
    ``fault_model`` it is given ``model``, and likewise ``permanent``. Raises ValueError where there is no such accelerator, it
    cannot run here, or it has no use for a ``model`` or faults that are given; so does the factory where the user's function
    fails or returns no Accelerator.
    """
    name, colon, rest = spec.partition(":")
    if name == "simulated" and (rest or not colon):
        path = rest or "auto"
        if rest:
            choose(path)  # says now what cannot run here
        return lambda rates, seed, device: Simulated(rates, seed, device, path, model, permanent)
    if spec == "onnxruntime":
        if permanent is not None:
            raise ValueError("accelerator 'onnxruntime': it has no array that could be worn; leave the permanent faults out")
        return _onnxruntime(model)
    if not colon or not name or not rest:
        raise ValueError(
            f"accelerator {spec!r}: expected simulated, simulated:PATH with an engine path, onnxruntime, "
            "or package.module:function"
        )
    return _users(spec, model, permanent)


def _onnxruntime(model: FaultModel) -> Factory:
    try:
        from accelsim.accelerators.onnxruntime import OnnxAccelerator  # an optional dependency
    except ImportError as error:
        raise ValueError(f"accelerator 'onnxruntime': {error}") from error
    return lambda rates, seed, device: OnnxAccelerator(rates, seed, device, model)


def _users(spec: str, model: FaultModel, permanent: FaultMap | None) -> Factory:
    function = users("accelerator", spec)
    wants = "expected a function of the rates, the seed and the device's name"
    try:
        signature = inspect.signature(function)
        offered = {"fault_model": model, "permanent": permanent}
        extra = {name: value for name, value in offered.items() if name in signature.parameters}
        signature.bind(Rates(), 0, "device", **extra)
    except (TypeError, ValueError) as error:
        raise ValueError(f"accelerator {spec!r}: {error}; {wants}") from error
    if permanent is not None and "permanent" not in extra:
        raise ValueError(
            f"accelerator {spec!r}: it takes no permanent faults (no parameter permanent); leave --fault-map and "
            "--random-faults out"
        )
    if model is not SOFT_ERRORS and "fault_model" not in extra:
        raise ValueError(f"accelerator {spec!r}: it has errors of its own and takes no fault model; leave that setting out")

    def make(rates: Rates, seed: int, device: str) -> Accelerator:
        try:
            made = function(rates, seed, device, **extra)
        except Exception as error:  # the user's own code runs here
            raise ValueError(f"accelerator {spec!r}: it fails to build: {type(error).__name__}: {error}") from error
        missing = [name for name in _METHODS if not callable(getattr(made, name, None))]
        if missing or isinstance(made, type):
            what = f"the class {made.__name__}, not one of it" if isinstance(made, type) else type(made).__name__
            lacks = f", without {', '.join(missing)}" if missing else ""
            raise ValueError(f"accelerator {spec!r}: returned {what}{lacks}; expected an accelsim.accelerators.Accelerator")
        accelerator: Accelerator = made
        return accelerator

    return make
