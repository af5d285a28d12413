"""Any traceable ``torch.nn.Module`` to the int8 network of architecture.md, "Arithmetic".

``torch.fx`` traces the module; each operator becomes a node of the float graph (``accelsim.lowering.graph``), batch norm and
ReLU are folded into the layer in front, and ``accelsim.lowering.calibration`` chooses the scales.

Operators that only move values (view, transpose, chunk, slices, pad, flatten ...) are not matched as patterns: they
are run on the *indices* of the elements, and what comes out says which channels and pixels ended up where. So a
channel shuffle is recognised however it is written.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from accelsim.int8.network import INPUT, Network, Shape, UInt8
from accelsim.int8.storage import validate
from accelsim.lowering import calibration, graph
from accelsim.lowering.graph import Graph

_SAME = 2e-3
"""Largest relative difference of the float graph from the module: more than float32 rounding, less than any mistake."""


class LoweringError(ValueError):
    """A module, or one of its operators, has no int8 network; the text names the node and the nearest that works."""


def lower(
    module: nn.Module, calibration_images_u8: UInt8, mean: Sequence[float], std: Sequence[float], name: str = "network"
) -> Network:
    """The int8 network of a float module, calibrated on real images.

    ``calibration_images_u8`` is uint8 (N, H, W, C), 64 to 256 images are enough; the module sees
    ``(pixel / 255 - mean[c]) / std[c]`` as (N, C, H, W) and is lowered as it runs in evaluation mode.
    Raises LoweringError where the module cannot be traced or an operator cannot be lowered.
    """
    images = calibration_images_u8
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise LoweringError(f"calibration images: expected uint8 (N, H, W, C), got {images.dtype} {images.shape}")
    if len(mean) != images.shape[3] or len(std) != images.shape[3] or min(std) <= 0:
        raise LoweringError(f"mean {mean} and std {std}: expected {images.shape[3]} values each, std above zero")
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    module = copy.deepcopy(module).float().cpu().eval()
    lowered = fold(trace(module, shape))
    _compare(module, lowered, calibration.normalise(images[:4], mean, std))
    try:
        network = calibration.quantize(lowered, images, mean, std, name)
    except ValueError as error:
        raise LoweringError(str(error)) from error
    validate(network)
    return network


@torch.no_grad()
def _compare(module: nn.Module, lowered: Graph, x: Tensor) -> None:
    want = module(x)
    *_, (_, got) = lowered.run(x)
    if want.dim() == 4:
        want = want.permute(0, 2, 3, 1)
        got = got.permute(0, 2, 3, 1)
    worst = float((want.reshape(-1) - got.reshape(-1)).abs().max())
    largest = float(want.abs().max())
    if not worst <= _SAME * max(largest, 1e-6):
        raise LoweringError(
            f"the lowered graph differs from the module by {worst} where values reach {largest}: "
            "does the module depend on the data or on random numbers?"
        )


def trace(module: nn.Module, input_shape: Shape) -> Graph:
    """The float graph of a module in evaluation mode, for images of ``input_shape`` (H, W, C); nothing folded yet.

    Raises LoweringError.
    """
    try:
        traced = fx.symbolic_trace(module)
    except Exception as error:  # the module's own code runs here, under a tracer that it was not written for
        raise LoweringError(
            f"{type(module).__name__} cannot be traced by torch.fx: {error}; "
            "write forward() without branches or loops over tensor values (shapes are fine)"
        ) from error
    tracer = _Lower(traced, input_shape)
    with torch.no_grad():
        tracer.run(_Value(INPUT, _indices(input_shape), "input"))
    return tracer.built


@dataclass(frozen=True, slots=True, eq=False)
class _Value:
    """What the traced program holds instead of a tensor: where each element comes from.

    ``index`` has the tensor's shape for a batch of two and holds the element's place in (2, C, H, W) of the node's
    result, or -1 for a zero. A batch of two, so that an operator which mixes images is noticed.
    """

    source: int
    index: Tensor
    name: str

    @property
    def shape(self) -> torch.Size:
        return self.index.shape

    @property
    def ndim(self) -> int:
        return self.index.dim()

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


def _indices(shape: Shape) -> Tensor:
    h, w, c = shape
    return torch.arange(2 * c * h * w).reshape(2, c, h, w)


_Handler = Callable[["_Lower", fx.Node, tuple[Any, ...], dict[str, Any]], Any]


class _Lower(fx.Interpreter):
    """Runs the traced program on ``_Value`` and writes down the graph."""

    def __init__(self, traced: fx.GraphModule, input_shape: Shape) -> None:
        super().__init__(traced)
        self.built = Graph(input_shape)
        self.extra_traceback = False
        self.names: set[str] = set()
        self.moved: dict[tuple[int, bytes], int] = {}

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "placeholder":
            try:
                return super().run_node(n)
            except Exception as error:
                raise LoweringError(f"input {n.target}: a network has one input, an image") from error
        if n.op == "output":
            return self._output(args[0])
        if n.op == "get_attr" or not any(isinstance(a, _Value) for a in _leaves((args, kwargs))):
            return super().run_node(n)
        try:
            if n.op == "call_module":
                module = self.module.get_submodule(str(n.target))
                return self._module(n, module, args, kwargs)
            return self._call(n, n.target, args, kwargs)
        except (RuntimeError, TypeError, IndexError) as error:
            raise LoweringError(f"{self.label(n)}: {(str(error) or type(error).__name__).splitlines()[0]}") from error

    def _output(self, result: Any) -> Any:
        if not isinstance(result, _Value):
            raise LoweringError(f"output: a network returns one tensor, not {type(result).__name__}")
        index = self.image(result, "output")
        if index == INPUT:
            raise LoweringError("output: the module computes nothing")
        self.built = _reachable(self.built, index)
        return result

    def refuse(self, n: fx.Node, what: str, instead: str) -> LoweringError:
        return LoweringError(f"{self.label(n)}: {what} cannot be lowered; {instead}")

    def label(self, n: fx.Node) -> str:
        """The node's name as the module's author knows it, e.g. ``layer1.0.add``."""
        if n.op == "call_module":
            return str(n.target)
        stack = list(n.meta.get("nn_module_stack", {}).values())
        owner = stack[-1][0] if stack else ""
        return f"{owner}.{n.name}" if owner else n.name

    def unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self.names:
            count += 1
            candidate = f"{name}.{count}"
        self.names.add(candidate)
        return candidate

    def add(self, n: fx.Node, node: graph.Node) -> _Value:
        if min(node.shape) < 1:
            raise LoweringError(f"{node.name}: gives an empty image (H, W, C) = {node.shape}; use larger images")
        node.name = self.unique(node.name)
        self.built.nodes.append(node)
        return _Value(len(self.built.nodes) - 1, _indices(node.shape), self.label(n))

    # --- where a value's elements are ---

    def image(self, value: _Value, consumer: str) -> int:
        """The node whose result is exactly ``value``; adds the nodes that move its elements there.

        A vector (N, F) is the image (N, F, 1, 1).
        """
        index = value.index
        source = self.built.shape_of(value.source)
        size = math.prod(source)
        if index.shape[0] != 2 or not torch.equal(torch.where(index[0] < 0, -1, index[0] + size), index[1]):
            raise LoweringError(f"{value.name}: mixes the images of a batch, which {consumer} cannot take")
        one = index[0]
        if one.dim() == 1:
            if one.numel() == size and torch.equal(one, torch.arange(size)):
                if source[:2] == (1, 1):
                    return value.source
                return self._move(value, lambda name: graph.Flatten(name=name, inputs=[value.source], shape=(1, 1, size)))
            one = one[:, None, None]
        if one.dim() != 3:
            raise LoweringError(
                f"{value.name}: a tensor of shape {tuple(index.shape)} reaches {consumer}; "
                "only images (N, C, H, W) and vectors (N, F) can be lowered"
            )
        if one.shape == (source[2], source[0], source[1]) and torch.equal(one.flatten(), torch.arange(size)):
            return value.source
        return self._window(value, one, source, consumer)

    def _move(self, value: _Value, make: Callable[[str], graph.Node], key: bytes | None = None) -> int:
        key = value.index[0].contiguous().numpy().tobytes() if key is None else key
        if (value.source, key) not in self.moved:
            self.built.nodes.append(make(self.unique(value.name)))
            self.moved[value.source, key] = len(self.built.nodes) - 1
        return self.moved[value.source, key]

    def _window(self, value: _Value, one: Tensor, source: Shape, consumer: str) -> int:
        """Channels in some order, then a strided window with zeros around it, if that is what ``one`` (C, H, W) is."""
        height, width, _ = source
        wrong = LoweringError(
            f"{value.name}: moves elements in a way that {consumer} cannot take; channel shuffles, splits and slices, "
            "strided slices, zero padding and flatten can be lowered"
        )
        real = one >= 0
        channel, row, column = one // (height * width), one // width % height, one % width
        axes = []
        for place, dims in ((channel, (1, 2)), (row, (0, 2)), (column, (0, 1))):
            top = torch.where(real, place, -1).amax(dims)
            low = torch.where(real, place, 1 << 40).amin(dims)
            if bool(((top >= 0) & (top != low)).any()):
                raise wrong
            axes.append(top.tolist())
        inside = torch.ones(1, dtype=torch.bool)
        for axis, shape in zip(axes, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True):
            inside = inside & (torch.tensor(axis) >= 0).reshape(shape)
        if not bool(torch.equal(inside.expand_as(real), real)) or not bool(real.any()):
            raise wrong
        channels, rows, columns = axes
        kept = [c for c in channels if c >= 0]
        if len(set(kept)) != len(kept):
            raise wrong
        operand = value.source
        before = next(i for i, c in enumerate(channels) if c >= 0)
        if channels[before : before + len(kept)] != kept:
            raise wrong
        key = one.contiguous().numpy().tobytes()
        plain_window = kept == list(range(kept[0], kept[0] + len(kept)))
        window = rows != list(range(height)) or columns != list(range(width)) or len(kept) != len(channels)
        offset = (0 if not plain_window else kept[0]) - before
        places = [(rows, height), (columns, width)] + ([(channels, source[2])] if plain_window else [])
        if not all(_zeros_lie_outside(axis, length, wrong) for axis, length in places):
            return self._crop_and_pad(value, one, consumer)
        if not plain_window or not window:
            moved = _Value(operand, value.index, f"{value.name}.channels" if window else value.name)
            shape = (height, width, len(kept))
            operand = self._move(
                moved,
                lambda name: graph.Channels(name=name, inputs=[value.source], shape=shape, order=kept),
                b"channels" + np.array(kept).tobytes(),
            )
            offset = -before
        if not window:
            return operand
        (first_row, row_step), (first_column, column_step) = _progression(rows, wrong), _progression(columns, wrong)
        return self._move(
            value,
            lambda name: graph.Slice(
                name=name, inputs=[operand], shape=(one.shape[1], one.shape[2], one.shape[0]),
                offset=(first_row, first_column, offset), step=(row_step, column_step),
            ),
            key,
        )  # fmt: skip

    def _crop_and_pad(self, value: _Value, one: Tensor, consumer: str) -> int:
        """Two layers where one window would read elements that should be zeros: cut out what is kept, then pad it."""
        kept = torch.nonzero(one >= 0)
        low, high = kept.amin(0).tolist(), (kept.amax(0) + 1).tolist()
        region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        size = math.prod(self.built.shape_of(value.source))
        inner = self.image(_Value(value.source, torch.stack([one[region], one[region] + size]), f"{value.name}.crop"), consumer)
        padded = torch.full((2, *one.shape), -1)
        padded[(slice(None), *region)] = _indices(self.built.shape_of(inner))
        return self.image(_Value(inner, padded, value.name), consumer)

    # --- operators ---

    def _module(self, n: fx.Node, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for kinds, handler in _MODULES:
            if isinstance(module, kinds):
                return handler(self, n, module, (*args, *kwargs.values()))
        if isinstance(module, _POINTWISE_MODULES):
            return self.pointwise(n, args[0], lambda x: module(x.clone()))
        if isinstance(module, _MOVING_MODULES):
            return self.move(n, module, args, kwargs)
        nearest = next((text for kinds, text in _NEAREST if isinstance(module, kinds)), _GENERAL)
        raise self.refuse(n, type(module).__name__, nearest)

    def _call(self, n: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        if target is operator.getitem and isinstance(args[0], tuple | list):
            return args[0][args[1]]
        if target is getattr:
            return getattr(args[0].index if args[1] in ("shape", "ndim") else args[0], args[1])
        if name in ("size", "dim", "numel"):
            return getattr(args[0].index, name)(*args[1:], **kwargs)
        handler = _FUNCTIONS.get(name.rstrip("_") if name not in _FUNCTIONS else name)
        if handler is not None:
            return handler(self, n, args, kwargs)
        if name.rstrip("_") in _POINTWISE_FUNCTIONS:
            return self.pointwise(n, args[0], _bind(target, args[1:], kwargs))
        if name in _MOVES:
            return self.move(n, target, args, kwargs)
        raise self.refuse(n, f"the operator {name}", _NEAREST_CALLS.get(name, _GENERAL))

    def move(self, n: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operator that only moves elements, on the indices."""
        values = [a for a in _leaves((args, kwargs)) if isinstance(a, _Value)]
        if len(values) != 1:
            raise self.refuse(n, f"{n.target} of several tensors", "torch.cat over channels works")
        (value,) = values
        result = self._on_indices(n, target, value, args, kwargs)
        if isinstance(result, Tensor) and (value.ndim, result.dim()) == (4, 2) and result.shape[1] > value.shape[1]:
            # A flatten. Moves in front of it become layers first: rows and columns cannot be told apart behind it.
            source = self.image(value, self.label(n))
            value = _Value(source, _indices(self.built.shape_of(source)), value.name)
            result = self._on_indices(n, target, value, args, kwargs)
        if isinstance(result, tuple | list):
            return [_Value(value.source, part, self.label(n)) for part in result]
        return _Value(value.source, result, self.label(n))

    def _on_indices(self, n: fx.Node, target: Any, value: _Value, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        index = value.index.contiguous()
        args, kwargs = fx.node.map_aggregate((args, kwargs), lambda a: index if isinstance(a, _Value) else a)
        try:
            return getattr(index, target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            raise LoweringError(f"{self.label(n)}: {n.target} failed: {error}") from error

    def pointwise(self, n: fx.Node, value: Any, function: Callable[[Tensor], Tensor]) -> _Value:
        if not isinstance(value, _Value):
            raise self.refuse(n, f"{n.target} of a constant by a tensor", _GENERAL)
        operand = self.image(value, self.label(n))
        shape = self.built.shape_of(operand)
        made = self.add(n, graph.Pointwise(name=self.label(n), inputs=[operand], shape=shape, function=function))
        return _shaped(made, value)

    def clamp(self, n: fx.Node, value: _Value, low: float, high: float) -> _Value:
        operand = self.image(value, self.label(n))
        node = graph.Clamp(name=self.label(n), inputs=[operand], shape=self.built.shape_of(operand), low=low, high=high)
        return _shaped(self.add(n, node), value)

    def affine(self, n: fx.Node, value: _Value, factor: Tensor, shift: Tensor) -> _Value:
        operand = self.image(value, self.label(n))
        shape = self.built.shape_of(operand)
        factor, shift = (v.detach().double().expand(shape[2]).clone() for v in (factor, shift))
        node = graph.Affine(name=self.label(n), inputs=[operand], shape=shape, factor=factor, shift=shift)
        return _shaped(self.add(n, node), value)

    def conv(
        self, n: fx.Node, value: _Value, weight: Tensor, bias: Tensor | None,
        stride: Any, padding: Any, dilation: Any, groups: int,
    ) -> _Value:  # fmt: skip
        if weight.dim() != 4 or value.ndim != 4:
            raise self.refuse(n, f"a convolution of {weight.dim() - 2} dimensions", "nn.Conv2d works")
        stride, dilation = _pair(stride), _pair(dilation)
        if padding == "valid":
            padding = 0
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if any(t % 2 for t in total):
                edges = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
                value = _Value(value.source, F.pad(value.index, edges, value=-1), f"{self.label(n)}.pad")
                total = [0, 0]
            padding = (total[0] // 2, total[1] // 2)
        padding = _pair(padding)
        operand = self.image(value, self.label(n))
        h, w, c = self.built.shape_of(operand)
        if c != weight.shape[1] * groups:
            raise self.refuse(n, f"a convolution of {c} channels", f"its weight wants {weight.shape[1] * groups}")
        size = [
            (v + 2 * p - d * (k - 1) - 1) // s + 1
            for v, p, d, k, s in zip((h, w), padding, dilation, weight.shape[2:], stride, strict=True)
        ]
        out = weight.shape[0]
        node = graph.Conv(
            name=self.label(n), inputs=[operand], shape=(size[0], size[1], out),
            weight=weight.detach().double(), bias=_zeros(out) if bias is None else bias.detach().double(),
            stride=stride, padding=padding, dilation=dilation, groups=int(groups),
        )  # fmt: skip
        return self.add(n, node)

    def linear(self, n: fx.Node, value: _Value, weight: Tensor, bias: Tensor | None) -> _Value:
        if value.ndim != 2:
            raise self.refuse(n, f"a linear layer on {value.ndim} dimensions", "flatten to (N, F), or use a 1x1 nn.Conv2d")
        source = self.image(value, self.label(n))
        column = _Value(source, _indices(self.built.shape_of(source)), value.name)
        return _shaped(self.conv(n, column, weight[:, :, None, None], bias, 1, 0, 1, 1), value)

    def pool(self, n: fx.Node, value: _Value, make: Callable[[int, Shape], graph.Node]) -> _Value:
        if value.ndim != 4:
            raise self.refuse(n, f"pooling over {value.ndim - 2} dimensions", "pool images (N, C, H, W)")
        operand = self.image(value, self.label(n))
        return self.add(n, make(operand, self.built.shape_of(operand)))


def _shaped(made: _Value, like: _Value) -> _Value:
    """A node's result in the shape of the value that it was computed from: (N, F) stays (N, F)."""
    return made if like.ndim == made.ndim else _Value(made.source, made.index.flatten(1), made.name)


def _progression(places: list[int], wrong: LoweringError) -> tuple[int, int]:
    """(place of the first, step) of positions in even steps, -1 where there are zeros around them."""
    first = next(i for i, p in enumerate(places) if p >= 0)
    kept = [p for p in places if p >= 0]
    step = kept[1] - kept[0] if len(kept) > 1 else 1
    if len(kept) == 1 and len(places) > 1:
        step = 1 << 15  # one real place among zeros: step over the rest of the operand
    expected = [kept[0] + step * i for i in range(len(kept))]
    if step < 1 or kept != expected or places[first : first + len(kept)] != kept:
        raise wrong
    if len(kept) == 1 and len(places) == 1:
        step = 1
    return kept[0] - first * step, step


def _zeros_lie_outside(places: list[int], size: int, wrong: LoweringError) -> bool:
    """Whether a strided window over ``size`` places gives zeros (-1) just where it leaves them."""
    first, step = _progression(places, wrong)
    return all((0 <= first + i * step < size) == (place >= 0) for i, place in enumerate(places))


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [value]


def _bind(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    kwargs = {k: v for k, v in kwargs.items() if k != "inplace"}
    if isinstance(target, str):
        return lambda x: getattr(x.clone(), target)(*args, **kwargs)
    return lambda x: target(x.clone(), *args, **kwargs)


def _argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str, default: Any) -> Any:
    """A call's argument, given by place or by name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, tuple | list):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


def _zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64)


def _reachable(old: Graph, output: int) -> Graph:
    """The nodes that the output depends on, in order, the output last."""
    wanted = {output}
    for index in range(output, -1, -1):
        if index in wanted:
            wanted.update(old.nodes[index].inputs)
    place = {INPUT: INPUT} | {index: i for i, index in enumerate(sorted(wanted - {INPUT}))}
    for index in wanted - {INPUT}:
        old.nodes[index].inputs = [place[i] for i in old.nodes[index].inputs]
    return Graph(old.input_shape, [old.nodes[index] for index in sorted(wanted - {INPUT})])


# --- one handler a module type or function name ---


def _conv_module(self: _Lower, n: fx.Node, m: nn.Conv2d, args: Sequence[Any]) -> _Value:
    if m.padding_mode != "zeros" and any(_pair(0 if isinstance(m.padding, str) else m.padding)):
        raise self.refuse(n, f"padding_mode={m.padding_mode!r}", "padding_mode='zeros' works")
    return self.conv(n, args[0], m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


def _norm_module(self: _Lower, n: fx.Node, m: nn.BatchNorm2d, args: Sequence[Any]) -> _Value:
    return _batch_norm(self, n, args[0], m.running_mean, m.running_var, m.weight, m.bias, m.eps)


def _batch_norm(
    self: _Lower, n: fx.Node, value: _Value, mean: Any, variance: Any, weight: Any, bias: Any, eps: float
) -> _Value:
    if mean is None or variance is None:
        raise self.refuse(n, "batch norm without running statistics", "track_running_stats=True works")
    factor = (variance.double() + eps).rsqrt()
    if weight is not None:
        factor = factor * weight.double()
    shift = -mean.double() * factor
    if bias is not None:
        shift = shift + bias.double()
    return self.affine(n, value, factor, shift)


def _max_pool(
    self: _Lower, n: fx.Node, value: _Value, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> _Value:  # fmt: skip
    if return_indices:
        raise self.refuse(n, "max pooling with return_indices", "return_indices=False works")
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = _pair(stride or kernel)

    def make(operand: int, shape: Shape) -> graph.Node:
        sample = torch.empty(1, 1, *shape[:2])
        size = F.max_pool2d(sample, kernel, stride, padding, dilation, ceil_mode).shape
        return graph.MaxPool(
            name=self.label(n), inputs=[operand], shape=(size[2], size[3], shape[2]),
            kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
        )  # fmt: skip

    return self.pool(n, value, make)


def _mean_pool(
    self: _Lower, n: fx.Node, value: _Value, kernel: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: Any = None,
) -> _Value:  # fmt: skip
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride or kernel)
    if divisor_override is not None:
        raise self.refuse(n, "mean pooling with divisor_override", "divisor_override=None works")
    if any(padding) and not count_include_pad:
        raise self.refuse(n, "mean pooling that does not count its padding", "count_include_pad=True works")

    def make(operand: int, shape: Shape) -> graph.Node:
        sample = torch.empty(1, 1, *shape[:2])
        size = F.avg_pool2d(sample, kernel, stride, padding).shape
        if size != F.avg_pool2d(sample, kernel, stride, padding, ceil_mode).shape:
            raise self.refuse(n, "mean pooling with partial windows", "ceil_mode=False works")
        return graph.MeanPool(
            name=self.label(n), inputs=[operand], shape=(size[2], size[3], shape[2]),
            kernel=kernel, stride=stride, padding=padding,
        )  # fmt: skip

    return self.pool(n, value, make)


def _adaptive(self: _Lower, n: fx.Node, value: _Value, size: Any, mean: bool) -> _Value:
    wanted = size if isinstance(size, tuple | list) else (size, size)

    def make(operand: int, shape: Shape) -> graph.Node:
        out = tuple(s if w is None else int(w) for w, s in zip(wanted, shape[:2], strict=True))
        if any(s % o for s, o in zip(shape[:2], out, strict=True)):
            raise self.refuse(
                n, f"adaptive pooling of {shape[:2]} to {out}", "an output size that divides the input, such as 1, works"
            )
        kernel = (shape[0] // out[0], shape[1] // out[1])
        name, result = self.label(n), (out[0], out[1], shape[2])
        if mean:
            return graph.MeanPool(name=name, inputs=[operand], shape=result, kernel=kernel, stride=kernel)
        return graph.MaxPool(
            name=name, inputs=[operand], shape=result,
            kernel=kernel, stride=kernel, padding=(0, 0), dilation=(1, 1), ceil_mode=False,
        )  # fmt: skip

    return self.pool(n, value, make)


def _mean(self: _Lower, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
    value = args[0]
    dims, keep = _argument(args, kwargs, 1, "dim", None), _argument(args, kwargs, 2, "keepdim", False)
    places = sorted(d % value.ndim for d in (dims if isinstance(dims, tuple | list) else [dims])) if dims else []
    if value.ndim != 4 or places != [2, 3]:
        raise self.refuse(n, f"a mean over dimensions {dims}", "a mean over (2, 3), the image, works")
    made = _adaptive(self, n, value, 1, mean=True)
    return made if keep else _Value(made.source, made.index.flatten(1), made.name)


def _cat(self: _Lower, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
    tensors, dim = _argument(args, kwargs, 0, "tensors", ()), _argument(args, kwargs, 1, "dim", kwargs.get("axis", 0))
    if not all(isinstance(t, _Value) for t in tensors):
        raise self.refuse(n, "a concat with a constant", "concatenate activations only")
    if dim % tensors[0].ndim != 1:
        raise self.refuse(n, f"a concat over dimension {dim}", "a concat over channels (dim=1) works")
    operands = [self.image(t, self.label(n)) for t in tensors]
    h, w, _ = self.built.shape_of(operands[0])
    shape = (h, w, sum(self.built.shape_of(i)[2] for i in operands))
    return _shaped(self.add(n, graph.Concat(name=self.label(n), inputs=operands, shape=shape)), tensors[0])


def _constant(self: _Lower, n: fx.Node, value: _Value, other: Any) -> Tensor:
    """A scalar, or a tensor with one value a channel, as (1,) or (C,) float64."""
    constant = torch.as_tensor(other).detach().double()
    if constant.numel() == 1:
        return constant.reshape(1)
    channels = value.shape[1]
    aligned = constant.reshape((1,) * (value.ndim - constant.dim()) + tuple(constant.shape))
    if aligned.shape[1] != channels or aligned.numel() != channels:
        raise self.refuse(n, f"a constant of shape {tuple(constant.shape)}", "a scalar or one value a channel works")
    return aligned.reshape(channels)


def _add(self: _Lower, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
    return _sum(self, n, args[0], args[1], 1.0, 1.0 * kwargs.get("alpha", 1))


def _sub(self: _Lower, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
    return _sum(self, n, args[0], args[1], 1.0, -1.0 * kwargs.get("alpha", 1))


def _sum(self: _Lower, n: fx.Node, a: Any, b: Any, sign_a: float, sign_b: float) -> _Value:
    one = torch.ones(1, dtype=torch.float64)
    if not isinstance(b, _Value):
        return self.affine(n, a, one * sign_a, _constant(self, n, a, b) * sign_b)
    if not isinstance(a, _Value):
        return self.affine(n, b, one * sign_b, _constant(self, n, b, a) * sign_a)
    if sign_b != 1:
        b = self.affine(n, b, one * sign_b, torch.zeros(1, dtype=torch.float64))
    operands = [self.image(v, self.label(n)) for v in (a, b)]
    shapes = [self.built.shape_of(i) for i in operands]
    if shapes[0] != shapes[1]:
        raise self.refuse(n, f"an addition of {shapes[0]} and {shapes[1]} (H, W, C)", "operands of one shape work")
    return _shaped(self.add(n, graph.Add(name=self.label(n), inputs=operands, shape=shapes[0])), a)


def _mul(self: _Lower, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
    a, b = args[0], args[1]
    zero = torch.zeros(1, dtype=torch.float64)
    if not isinstance(b, _Value):
        return self.affine(n, a, _constant(self, n, a, b), zero)
    if not isinstance(a, _Value):
        return self.affine(n, b, _constant(self, n, b, a), zero)
    operands = [self.image(v, self.label(n)) for v in (a, b)]
    shapes = [self.built.shape_of(i) for i in operands]
    if shapes[0] == (1, 1, shapes[0][2]) != shapes[1]:
        operands.reverse()
        shapes.reverse()
        a, b = b, a
    if shapes[1] not in (shapes[0], (1, 1, shapes[0][2])):
        raise self.refuse(n, f"a product of {shapes[0]} and {shapes[1]} (H, W, C)", "one shape, or a gate (1, 1, C), works")
    return _shaped(self.add(n, graph.Mul(name=self.label(n), inputs=operands, shape=shapes[0])), a)


def _div(self: _Lower, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
    if isinstance(args[1], _Value) or kwargs.get("rounding_mode") is not None:
        raise self.refuse(n, "a division by an activation", "division by a constant works")
    constant = _constant(self, n, args[0], args[1])
    return self.affine(n, args[0], 1 / constant, torch.zeros(1, dtype=torch.float64))


def _clamp_call(self: _Lower, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
    low, high = (_argument(args, kwargs, place, name, None) for place, name in ((1, "min"), (2, "max")))
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return self.clamp(n, args[0], low, high)


def _pad(self: _Lower, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Value:
    value = args[0]
    edges, mode = _argument(args, kwargs, 1, "pad", ()), _argument(args, kwargs, 2, "mode", "constant")
    fill = _argument(args, kwargs, 3, "value", None)
    if mode != "constant" or fill not in (None, 0, 0.0):
        raise self.refuse(n, f"padding with mode {mode!r} and value {fill}", "padding with zeros works")
    return _Value(value.source, F.pad(value.index, list(edges), value=-1), self.label(n))


def _same(self: _Lower, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0]


def _functional(handler: Callable[..., _Value]) -> _Handler:
    return lambda self, n, args, kwargs: handler(self, n, *args, **_renamed(kwargs))


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = {"input": "value", "kernel_size": "kernel"}
    return {names.get(k, k): v for k, v in kwargs.items()}


def _conv_call(
    self: _Lower, n: fx.Node, value: _Value, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> _Value:  # fmt: skip
    if not isinstance(weight, Tensor):
        raise self.refuse(n, "a convolution whose weight is computed", "a weight that is a parameter works")
    return self.conv(n, value, weight, bias, stride, padding, dilation, groups)


def _linear_call(self: _Lower, n: fx.Node, value: _Value, weight: Any, bias: Any = None) -> _Value:
    if not isinstance(weight, Tensor):
        raise self.refuse(n, "a linear layer whose weight is computed", "a weight that is a parameter works")
    return self.linear(n, value, weight, bias)


def _norm_call(
    self: _Lower, n: fx.Node, value: _Value, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> _Value:  # fmt: skip
    if training:
        raise self.refuse(n, "batch norm in training mode", "module.eval() must turn it off")
    return _batch_norm(self, n, value, running_mean, running_var, weight, bias, eps)


_MODULES: tuple[tuple[Any, Callable[..., Any]], ...] = (
    (nn.Conv2d, _conv_module),
    (nn.Linear, lambda self, n, m, a: self.linear(n, a[0], m.weight, m.bias)),
    ((nn.BatchNorm2d, nn.BatchNorm1d), _norm_module),
    ((nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity), lambda self, n, m, a: a[0]),
    (nn.ReLU6, lambda self, n, m, a: self.clamp(n, a[0], 0.0, 6.0)),
    (nn.ReLU, lambda self, n, m, a: self.clamp(n, a[0], 0.0, math.inf)),
    (nn.Hardtanh, lambda self, n, m, a: self.clamp(n, a[0], m.min_val, m.max_val)),
    (
        nn.MaxPool2d,
        lambda self, n, m, a: _max_pool(
            self, n, a[0], m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
        ),
    ),
    (
        nn.AvgPool2d,
        lambda self, n, m, a: _mean_pool(
            self, n, a[0], m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
        ),
    ),
    (nn.AdaptiveAvgPool2d, lambda self, n, m, a: _adaptive(self, n, a[0], m.output_size, mean=True)),
    (nn.AdaptiveMaxPool2d, lambda self, n, m, a: _adaptive(self, n, a[0], m.output_size, mean=False)),
    (nn.ZeroPad2d, lambda self, n, m, a: _pad(self, n, (a[0], m.padding), {})),
)

_FUNCTIONS: dict[str, _Handler] = {
    "conv2d": _functional(_conv_call),
    "linear": _functional(_linear_call),
    "batch_norm": _functional(_norm_call),
    "dropout": _same,
    "dropout2d": _same,
    "contiguous": _same,
    "float": _same,
    "detach": _same,
    "clone": _same,
    "relu": lambda self, n, a, k: self.clamp(n, a[0], 0.0, math.inf),
    "relu6": lambda self, n, a, k: self.clamp(n, a[0], 0.0, 6.0),
    "hardtanh": lambda self, n, a, k: self.clamp(
        n, a[0], float(_argument(a, k, 1, "min_val", -1)), float(_argument(a, k, 2, "max_val", 1))
    ),
    "clamp": _clamp_call,
    "clip": _clamp_call,
    "max_pool2d": _functional(_max_pool),
    "boolean_dispatch": _functional(_max_pool),
    "avg_pool2d": _functional(_mean_pool),
    "adaptive_avg_pool2d": lambda self, n, a, k: _adaptive(self, n, a[0], k.get("output_size", a[-1]), mean=True),
    "adaptive_max_pool2d": lambda self, n, a, k: _adaptive(self, n, a[0], k.get("output_size", a[-1]), mean=False),
    "mean": _mean,
    "cat": _cat,
    "concat": _cat,
    "concatenate": _cat,
    "add": _add,
    "iadd": _add,
    "sub": _sub,
    "isub": _sub,
    "rsub": lambda self, n, a, k: _sum(self, n, a[0], a[1], -1.0, 1.0),
    "neg": lambda self, n, a, k: _mul(self, n, (a[0], -1.0), {}),
    "mul": _mul,
    "imul": _mul,
    "multiply": _mul,
    "truediv": _div,
    "itruediv": _div,
    "div": _div,
    "pad": _pad,
}

_MOVES = frozenset(
    (
        "view",
        "reshape",
        "transpose",
        "permute",
        "movedim",
        "swapaxes",
        "swapdims",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "tensor_split",
        "narrow",
        "select",
        "unbind",
        "getitem",
        "channel_shuffle",
        "pixel_shuffle",
        "pixel_unshuffle",
        "flip",
        "roll",
        "index_select",
        "view_as",
        "reshape_as",
    )
)
_POINTWISE_FUNCTIONS = frozenset(
    (
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "silu",
        "gelu",
        "tanh",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "softplus",
        "mish",
        "softsign",
        "logsigmoid",
        "abs",
        "exp",
        "log",
        "log1p",
        "sqrt",
        "rsqrt",
        "square",
        "pow",
        "sin",
        "cos",
        "erf",
        "tanhshrink",
        "hardshrink",
        "softshrink",
        "threshold",
        "reciprocal",
    )
)
_POINTWISE_MODULES = (
    nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU,
    nn.Softplus, nn.Mish, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold,
)  # fmt: skip
_MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)
_GENERAL = (
    "convolution, linear, batch norm, pointwise functions, add, multiply, concat, max and mean pooling, channel "
    "shuffles, slices and zero padding can"
)
_NEAREST: tuple[tuple[Any, str], ...] = (
    (
        (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d, nn.LocalResponseNorm),
        "nn.BatchNorm2d can, its statistics are constants",
    ),
    ((nn.Softmax, nn.LogSoftmax), "leave it out, the largest output stays the largest"),
    ((nn.ConvTranspose2d,), "nn.Conv2d can"),
    ((nn.Upsample,), "a strided nn.Conv2d can be taken out of the encoder instead"),
    ((nn.PReLU,), "nn.LeakyReLU can, its slope is the same for all channels"),
    ((nn.Conv1d, nn.Conv3d), "nn.Conv2d can"),
    ((nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN, nn.Embedding), "only convolutional networks can"),
    ((nn.LPPool2d, nn.FractionalMaxPool2d), "nn.AvgPool2d and nn.MaxPool2d can"),
)  # fmt: skip
_NEAREST_CALLS = {
    "softmax": "leave it out, the largest output stays the largest",
    "log_softmax": "leave it out, the largest output stays the largest",
    "layer_norm": "nn.BatchNorm2d can",
    "group_norm": "nn.BatchNorm2d can",
    "matmul": "nn.Linear and nn.Conv2d can, with a weight that is a parameter",
    "bmm": "nn.Linear and nn.Conv2d can, with a weight that is a parameter",
    "interpolate": "pooling and strided convolution can change the size",
    "prelu": "F.leaky_relu can, its slope is the same for all channels",
    "sum": "a mean over (2, 3) can",
    "stack": "torch.cat over channels can",
    "scaled_dot_product_attention": "only convolutional networks can",
}


# --- folding ---


def fold(traced: Graph) -> Graph:
    """Batch norm into weights, ReLU into bounds, chains of pointwise functions into one; what remains has a layer.

    The graph's nodes are changed in place.
    """
    nodes = traced.nodes
    alias: dict[int, int] = {INPUT: INPUT}
    readers = traced.consumers()
    readers[len(nodes) - 1].append(len(nodes))
    for index, node in enumerate(nodes):
        node.inputs = [alias[i] for i in node.inputs]
        alias[index] = index
        source = node.inputs[0]
        before = nodes[source] if source != INPUT else None
        alone = len(readers[source]) == 1
        if isinstance(node, graph.Affine) and isinstance(before, graph.Conv) and alone and _open(before):
            before.weight = before.weight * node.factor[:, None, None, None]
            before.bias = before.bias * node.factor + node.shift
            alias[index], readers[source] = source, readers[index]
        elif isinstance(node, graph.Affine) and isinstance(before, graph.Affine) and alone:
            before.shift = before.shift * node.factor + node.shift
            before.factor = before.factor * node.factor
            alias[index], readers[source] = source, readers[index]
        elif isinstance(node, graph.Affine) and not _uniform(node):
            nodes[index] = _remaining_affine(node)
        elif isinstance(node, graph.Clamp) and _absorb(nodes, readers, source, node):
            alias[index], readers[source] = source, readers[index]
        elif isinstance(node, graph.Clamp):
            nodes[index] = _compose(nodes, node, node.inputs[0], lambda x: x)
        elif isinstance(node, graph.Pointwise):
            nodes[index] = _compose(nodes, node, node.inputs[0], node.function)
        elif isinstance(node, graph.Mul | graph.Add) and len(node.inputs) == 2:
            nodes[index] = _same_source(nodes, node)
    for index, node in enumerate(nodes):
        node.inputs = [alias[i] for i in node.inputs]
        if isinstance(node, graph.Affine):
            nodes[index] = _remaining_affine(node)
    return _reachable(traced, alias[len(nodes) - 1])


def _open(node: graph.Node) -> bool:
    return node.low == -math.inf and node.high == math.inf


def _absorb(nodes: list[graph.Node], readers: dict[int, list[int]], source: int, bounds: graph.Node) -> bool:
    """Moves the bounds into the layer that computed the values, if nothing else reads it before them."""
    while source != INPUT and len(readers[source]) == 1:
        node = nodes[source]
        if isinstance(node, graph.Conv | graph.Add | graph.Concat | graph.Mul | graph.MeanPool | graph.Pointwise):
            node.low, node.high = (min(max(v, bounds.low), bounds.high) for v in (node.low, node.high))
            return True
        if not isinstance(node, graph.MOVES) or bounds.low > 0 or bounds.high < 0:
            return False
        source = node.inputs[0]
    return False


def _compose(nodes: list[graph.Node], node: graph.Node, source: int, function: Callable[[Tensor], Tensor]) -> graph.Pointwise:
    """``function`` behind the pointwise nodes in front of it, as one function of what they read."""
    root, inner = _pointwise_of(nodes, source)
    return graph.Pointwise(
        name=node.name, inputs=[root], shape=node.shape, low=node.low, high=node.high,
        function=lambda x: function(inner(x)),
    )  # fmt: skip


def _pointwise_of(nodes: list[graph.Node], index: int) -> tuple[int, Callable[[Tensor], Tensor]]:
    """(node, function): the result of ``index`` is that function of the node's result, element by element."""
    node = nodes[index] if index != INPUT else None
    if isinstance(node, graph.Pointwise):
        return node.inputs[0], lambda x: graph.clamp(node, node.function(x))
    if isinstance(node, graph.Affine) and _uniform(node):
        root, inner = _pointwise_of(nodes, node.inputs[0])
        factor, shift = float(node.factor[0]), float(node.shift[0])
        return root, lambda x: inner(x) * factor + shift
    return index, lambda x: x


def _same_source(nodes: list[graph.Node], node: graph.Node) -> graph.Node:
    """A product or sum of two functions of one node is itself a function of it: ``x * relu6(x + 3)``."""
    (a, left), (b, right) = (_pointwise_of(nodes, i) for i in node.inputs)
    plain = a == node.inputs[0] and b == node.inputs[1]
    if a != b or (plain and isinstance(node, graph.Add)):
        return node
    if nodes[a].shape != node.shape if a != INPUT else False:
        return node
    combine = operator.mul if isinstance(node, graph.Mul) else operator.add
    return graph.Pointwise(
        name=node.name, inputs=[a], shape=node.shape, low=node.low, high=node.high,
        function=lambda x: combine(left(x), right(x)),
    )  # fmt: skip


def _uniform(node: graph.Affine) -> bool:
    return bool((node.factor == node.factor[0]).all() and (node.shift == node.shift[0]).all())


def _remaining_affine(node: graph.Affine) -> graph.Node:
    """A scale and shift with nothing to fold into: a table where all channels agree, else a 1x1 depthwise layer."""
    if _uniform(node):
        factor, shift = float(node.factor[0]), float(node.shift[0])
        return graph.Pointwise(
            name=node.name, inputs=node.inputs, shape=node.shape, low=node.low, high=node.high,
            function=lambda x: x * factor + shift,
        )  # fmt: skip
    return graph.Conv(
        name=node.name, inputs=node.inputs, shape=node.shape, low=node.low, high=node.high,
        weight=node.factor[:, None, None, None].clone(), bias=node.shift, groups=node.shape[2],
    )  # fmt: skip
