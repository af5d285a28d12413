"""A torch module to its float graph: the module runs once, on a tensor that writes down what is done to it."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn

from accelsim.int8.network import INPUT, Shape
from accelsim.lowering.builder import Builder
from accelsim.lowering.errors import LoweringError
from accelsim.lowering.graph import Graph, reachable
from accelsim.lowering.traced import Traced


def trace(module: nn.Module, input_shape: Shape) -> Graph:
    """The float graph of a module in evaluation mode, for images of ``input_shape`` (H, W, C); nothing folded yet.

    The module itself is left alone. Raises LoweringError.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise LoweringError(f"{type(module).__name__}: a TorchScript module cannot be traced; give the Python module")
    _one_input(module)
    running = duplicate(module)
    builder = Builder(input_shape)
    tracked = builder.follow(running)
    try:
        with torch.no_grad(), tracked:
            result = running(Traced(builder.elements(INPUT), "input", builder))
    except LoweringError:
        raise
    except Exception as error:  # the module's own code runs here
        h, w, c = input_shape
        where = builder.place or type(module).__name__
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise LoweringError(f"{where}: forward() fails on images of {h}x{w}x{c}: {type(error).__name__}: {text}") from error
    if not isinstance(result, Traced):
        raise LoweringError(f"output: a network returns one tensor, not {type(result).__name__}")
    output = builder.output(result)
    if output == INPUT:
        raise LoweringError("output: the module computes nothing")
    return reachable(builder.built, output)


def duplicate(module: nn.Module) -> nn.Module:
    """A copy of the module on the CPU in float32, in evaluation mode.

    Weights that are computed from others (pruning, weight norm) are copied by value: ``copy.deepcopy`` alone refuses them.
    """
    computed = {
        id(value): value.detach().clone()
        for child in module.modules()
        for value in vars(child).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(module, computed).float().cpu().eval()


def _one_input(module: nn.Module) -> None:
    """Raises LoweringError where ``forward`` needs anything but one image."""
    needed = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        raise LoweringError(f"input {needed[1]}: a network has one input, an image; forward() needs {', '.join(needed)}")
