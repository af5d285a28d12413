"""The float graph, written while the module runs: nodes, their names, and the moves in front of them."""

from __future__ import annotations

import bisect
import inspect
import math
import sys
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accelsim.int8.network import INPUT, Shape
from accelsim.lowering import graph, operators, places, refusals
from accelsim.lowering.errors import LoweringError
from accelsim.lowering.graph import Graph
from accelsim.lowering.origins import Origin, Origins
from accelsim.lowering.traced import Traced, leaves, replaced


class Builder:
    """Takes each operator of a running module and adds its node to ``built``."""

    def __init__(self, input_shape: Shape) -> None:
        self.built = Graph(input_shape)
        self.tracked: Origins | None = None
        """What torch computes from the module's parameters while it runs"""
        self._first: list[int] = [0]
        """First element number of the input and of each node: ``_first[index + 1]``"""
        self._stack: list[tuple[str, nn.Module]] = []
        """Modules that are running, the outermost first"""
        self._label = ""
        self._functions: Counter[str] = Counter()
        self._names: set[str] = set()
        self._moved: dict[tuple[int, Any], int] = {}

    # --- where in the module we are ---

    def follow(self, module: nn.Module) -> Origins:
        """Keeps track of which submodule runs. Hooks stay in the module: give a copy. Enter what it returns while it runs."""

        def enter(name: str) -> Callable[[nn.Module, Any], None]:
            def hook(running: nn.Module, args: Any) -> None:
                self._stack.append((name, running))
                if any(isinstance(leaf, Traced) for leaf in leaves(args)):
                    self._label = name
                    refusals.check_module(self, running)

            return hook

        def leave(running: nn.Module, args: Any, result: Any) -> None:
            self._stack.pop()

        for name, child in module.named_modules():
            child.register_forward_pre_hook(enter(name), prepend=True)
            child.register_forward_hook(leave)
        self.tracked = Origins(module)
        return self.tracked

    @property
    def place(self) -> str:
        """Path of the innermost module that runs, or of torch's own layer around it; empty at the top."""
        if (leaf := self._leaf()) is not None:
            return leaf
        return self._stack[-1][0] if self._stack else ""

    def _leaf(self) -> str | None:
        return next((path for path, module in self._stack if _is_torchs(module) and path), None)

    def running(self) -> nn.Module | None:
        """The innermost module that runs."""
        return self._stack[-1][1] if self._stack else None

    def _enter(self, function: str) -> None:
        """Names the operator as the module's author knows it: ``layer1.0.conv1``, ``layer1.0.add``."""
        if (leaf := self._leaf()) is not None:
            self._label = leaf
            return
        count = self._functions[function]
        self._functions[function] += 1
        own = f"{function}_{count}" if count else function
        self._label = f"{self.place}.{own}" if self.place else own

    @property
    def label(self) -> str:
        """Name of the operator that is being added."""
        return self._label

    def refuse(self, what: str, instead: str) -> LoweringError:
        """The error for what cannot be lowered, and the nearest that can."""
        return LoweringError(f"{self.label}: {what} cannot be lowered; {instead}")

    # --- operators ---

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Result of a torch function with a traced tensor among its arguments; its nodes are added.

        Raises LoweringError.
        """
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return operators.attribute(args[0], func.__self__.__name__)
        if name in operators.QUERIES:
            return operators.query(name, func, args, kwargs)
        args, kwargs, in_place = _in_place(func, name, args, kwargs)
        name = name.strip("_")
        self._enter(name)
        try:
            result = self._result(name, func, args, kwargs)
            if in_place and isinstance(result, Traced) and isinstance(args[0], Traced):
                args[0].origin.copy_(result.origin)  # through memory, so that views of it see the change too
                args[0].label = result.label
                return args[0]
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            if isinstance(error, LoweringError):
                raise
            text = (str(error) or type(error).__name__).splitlines()[0]
            raise LoweringError(f"{self.label}: {name}: {text}") from error
        return result

    def _result(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (handler := operators.HANDLERS.get(name)) is not None:
            return handler(self, *args, **kwargs)
        if name in operators.POINTWISE:
            if not args or not isinstance(args[0], Traced) or any(isinstance(a, Traced) for a in leaves((args[1:], kwargs))):
                raise self.refuse(f"{name} by an activation", "a function of one activation and constants works")
            return self.pointwise(args[0], lambda x: func(x.clone(), *args[1:], **kwargs))
        if name in operators.MOVES:
            return self.move(func, args, kwargs)
        raise refusals.operator(self, name)

    def move(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operator that only moves elements, on their indices."""
        value = next(leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Traced))

        def run(index: Tensor) -> Any:
            rest = replaced((args, kwargs), lambda a: index if a is value else a.origin if isinstance(a, Traced) else a)
            return func(*rest[0], **rest[1])

        result = run(value.origin)
        if (
            isinstance(result, Tensor)
            and (value.origin.dim(), result.dim()) == (4, 2)
            and result.shape[1] > value.origin.shape[1]
        ):
            # A flatten. Moves in front of it become layers first: rows and columns cannot be told apart behind it.
            source = self.image(value)
            if not torch.equal(self.elements(source), value.origin):
                result = run(self.elements(source))
        if isinstance(result, tuple | list):
            return type(result)([self.value(part) for part in result])
        return self.value(result)

    def value(self, index: Tensor) -> Traced:
        """A traced tensor of these elements, by the name of the operator that is being added."""
        return Traced(index, self.label, self)

    def pointwise(self, value: Traced, function: Callable[[Tensor], Tensor]) -> Traced:
        """A function of each element alone."""
        operand = self.image(value)
        shape = self.built.shape_of(operand)
        return self.add(graph.Pointwise(name=self.label, inputs=[operand], shape=shape, function=function), value)

    def clamp(self, value: Traced, low: float, high: float) -> Traced:
        """The value within bounds."""
        operand = self.image(value)
        shape = self.built.shape_of(operand)
        return self.add(graph.Clamp(name=self.label, inputs=[operand], shape=shape, low=low, high=high), value)

    def affine(
        self, value: Traced, factor: Tensor | float, shift: Tensor | float, origins: frozenset[Origin] = frozenset()
    ) -> Traced:
        """``value * factor + shift``, each a number or one a channel."""
        operand = self.image(value)
        shape = self.built.shape_of(operand)
        both = [torch.as_tensor(v).detach().double().expand(shape[2]).clone() for v in (factor, shift)]
        node = graph.Affine(
            name=self.label, inputs=[operand], shape=shape, factor=both[0], shift=both[1], origins=origins
        )  # fmt: skip
        return self.add(node, value)

    def origins(self, tensor: Tensor) -> frozenset[Origin]:
        """The module's parameters that a weight comes from; its layer's weight where it was computed before the module ran."""
        found = frozenset[Origin]() if self.tracked is None else self.tracked.of(tensor)
        leaf = self._leaf()
        return found or (frozenset() if leaf is None else frozenset({Origin(f"{leaf}.weight", 0, sys.maxsize)}))

    # --- nodes ---

    def add(self, node: graph.Node, like: Traced | None = None) -> Traced:
        """The result of a new node, in the shape of the operand ``like``: (N, F) stays (N, F)."""
        if min(node.shape) < 1:
            raise LoweringError(f"{node.name}: gives an empty image (H, W, C) = {node.shape}; use larger images")
        index = self.elements(self._append(node))
        return self.value(index.flatten(1) if like is not None and like.origin.dim() == 2 else index)

    def _append(self, node: graph.Node) -> int:
        node.name = self._unique(node.name)
        self._first.append(self._first[-1] + 2 * math.prod(self.built.shape_of(len(self.built.nodes) - 1)))
        self.built.nodes.append(node)
        return len(self.built.nodes) - 1

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}.{count}"
        self._names.add(candidate)
        return candidate

    def elements(self, source: int) -> Tensor:
        """Numbers (2, C, H, W) of the elements of a node's result, for two images."""
        h, w, c = self.built.shape_of(source)
        return (torch.arange(2 * c * h * w) + self._first[source + 1]).reshape(2, c, h, w)

    def source_of(self, element: int) -> int:
        """The node whose result has that element; below INPUT for a zero."""
        return bisect.bisect_right(self._first, element) - 2

    def image(self, value: Traced) -> int:
        """The node whose result is exactly ``value``; adds the nodes that move its elements there.

        A vector (N, F) is the image (N, F, 1, 1). Raises LoweringError.
        """
        index = value.origin
        if index.dim() not in (2, 4):
            raise LoweringError(
                f"{value.label}: a tensor of shape {tuple(index.shape)} reaches {self.label}; "
                "only images (N, C, H, W) and vectors (N, F) can be lowered"
            )
        if index.shape[0] != 2 or not bool((index >= 0).any()):
            raise self._wrong(value)
        source = self.source_of(int(index.max()))
        if int(torch.where(index < 0, index.max(), index).min()) < self._first[source + 1]:
            return self._side_by_side(value)
        size = math.prod(self.built.shape_of(source))
        one = torch.where(index < 0, -1, index - self._first[source + 1])
        if not torch.equal(torch.where(one[0] < 0, -1, one[0] + size), one[1]):
            raise LoweringError(f"{value.label}: mixes the images of a batch, which {self.label} cannot take")
        return self._moved_image(value, source, one[0])

    def output(self, value: Traced) -> int:
        """The node whose result is what the module returns. Raises LoweringError."""
        self._label = "output"
        return self.image(value)

    def _moved_image(self, value: Traced, source: int, one: Tensor) -> int:
        shape = self.built.shape_of(source)
        if one.dim() == 1:
            if one.numel() == math.prod(shape) and torch.equal(one, torch.arange(one.numel())):
                if shape[:2] == (1, 1):
                    return source
                flat = (1, 1, one.numel())
                return self._move(source, "flat", graph.Flatten(name=value.label, inputs=[source], shape=flat))
            one = one[:, None, None]
        steps = places.moves(one, shape)
        if steps is None:
            return self._side_by_side(value)
        for suffix, step in steps:
            name = value.label + suffix
            match step:
                case places.Reorder():
                    shape = (*shape[:2], len(step.order))
                    node: graph.Node = graph.Channels(name=name, inputs=[source], shape=shape, order=list(step.order))
                case places.Window():
                    shape = step.shape
                    node = graph.Slice(name=name, inputs=[source], shape=shape, offset=step.offset, step=step.step)
                case places.Pick():
                    shape = (len(step.rows), len(step.columns), shape[2])
                    rows, columns = (np.array(side, np.int32)[:, None] for side in (step.rows, step.columns))
                    node = graph.Resample(
                        name=name, inputs=[source], shape=shape, rows=rows, row_weights=np.ones_like(rows), columns=columns,
                        column_weights=np.ones_like(columns),
                    )  # fmt: skip
            source = self._move(source, step, node)
        return source

    def _move(self, source: int, key: Any, node: graph.Node) -> int:
        """The node, or one that does the same already."""
        if (source, key) not in self._moved:
            self._moved[source, key] = self._append(node)
        return self._moved[source, key]

    def _side_by_side(self, value: Traced) -> int:
        """A concat of channels that come from several nodes, or were moved each in a way of their own.

        Channels of zeros go with those in front of them.
        """
        channels = value.origin[0].flatten(1)
        sources = [self.source_of(element) for element in channels.amax(1).tolist()]
        keys = [(source, self._pattern(channel, source)) for source, channel in zip(sources, channels, strict=True)]
        parts: list[list[int]] = []
        for channel, key in enumerate(keys):
            if parts and (key[0] < INPUT or key == keys[parts[-1][0]] or keys[parts[-1][0]][0] < INPUT):
                parts[-1].append(channel)
            else:
                parts.append([channel])
        if len(parts) < 2 or value.origin.dim() != 4:
            raise self._wrong(value)
        operands = [self.image(Traced(value.origin[:, part], f"{value.label}.part", self)) for part in parts]
        h, w, _ = self.built.shape_of(operands[0])
        return self._append(graph.Concat(name=value.label, inputs=operands, shape=(h, w, len(keys))))

    def _pattern(self, channel: Tensor, source: int) -> bytes:
        """Which pixels of its node's result a channel is made of."""
        if source < INPUT:
            return b""
        h, w, _ = self.built.shape_of(source)
        places: bytes = torch.where(channel < 0, -1, (channel - self._first[source + 1]) % (h * w)).numpy().tobytes()
        return places

    def _wrong(self, value: Traced) -> LoweringError:
        return LoweringError(
            f"{value.label}: moves elements in a way that {self.label} cannot take; channel shuffles, splits and slices, "
            "strided slices, zero padding and flatten can be lowered"
        )


def _is_torchs(module: nn.Module) -> bool:
    """Whether it is one of torch's own layers, whose insides are not named."""
    return type(module).__module__.startswith("torch.nn") and not isinstance(
        module, nn.Sequential | nn.ModuleList | nn.ModuleDict | nn.DataParallel
    )


def _in_place(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
    """(args, kwargs, whether the operator writes into its first argument), without ``inplace``."""
    if isinstance(func, types.FunctionType) and "inplace" in inspect.signature(func).parameters:
        bound = inspect.signature(func).bind(*args, **kwargs)
        in_place = bool(bound.arguments.pop("inplace", False))
        return bound.args, bound.kwargs, in_place
    return args, kwargs, name.endswith("_") and not name.endswith("__")
