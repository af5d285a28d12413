"""One handler a torch operator: what it adds to the float graph.

Handlers take torch's arguments by torch's names, so that calls by place and by name both work. Modules of ``torch.nn`` need
none of their own: they call these functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accelsim.lowering import enlarging, graph, pooling, resampling
from accelsim.lowering.traced import Traced

if TYPE_CHECKING:
    from accelsim.lowering.builder import Builder

# --- what is asked about a tensor ---

QUERIES = frozenset(
    ("size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex",
     "get_device", "__len__", "__hash__", "has_names", "is_inference", "__repr__")
)  # fmt: skip
"""Methods that ask for what a tensor is, not for its values"""


def query(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The answer to one of ``QUERIES``."""
    value = args[0]
    if name == "__hash__":
        return id(value)
    if name == "__repr__":
        return f"Traced({value.label}, {tuple(value.origin.shape)})"
    if name == "__len__":
        return value.origin.shape[0]
    if name in ("is_floating_point", "is_complex", "get_device", "has_names", "is_inference"):
        return func(torch.empty(0))
    return func(value.origin, *args[1:], **kwargs)


def attribute(value: Traced, name: str) -> Any:
    """``value.label`` of a traced tensor: its shape, views like ``T`` and ``data``, float32 and CPU for the rest."""
    if name in ("shape", "ndim"):
        return getattr(value.origin, name)
    if name in ("T", "mT", "H", "mH", "data", "real"):
        return Traced(getattr(value.origin, name), value.label, value.builder)
    return getattr(torch.empty(0), name)


# --- layers with weights ---


def _conv2d(
    b: Builder, input: Traced, weight: Any, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Traced:  # fmt: skip
    _parameter_weight(b, weight, bias)
    if weight.dim() != 4 or input.origin.dim() != 4:
        raise b.refuse(f"a convolution of {weight.dim() - 2} dimensions", "nn.Conv2d works")
    stride, dilation = pooling.pair(stride), pooling.pair(dilation)
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):
            edges = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
            input = Traced(F.pad(input.origin, edges, value=-1), f"{b.label}.pad", b)
            total = [0, 0]
        padding = (total[0] // 2, total[1] // 2)
    return _convolution(b, input, weight, bias, stride, pooling.pair(padding), dilation, groups)


def _linear(b: Builder, input: Traced, weight: Any, bias: Tensor | None = None) -> Traced:
    _parameter_weight(b, weight, bias)
    if input.origin.dim() != 2:
        raise b.refuse(f"a linear layer on {input.origin.dim()} dimensions", "flatten to (N, F), or use a 1x1 nn.Conv2d")
    return _convolution(b, input, weight, bias, (1, 1), (0, 0), (1, 1), 1)


def _parameter_weight(b: Builder, weight: Any, bias: Any) -> None:
    if isinstance(weight, Traced) or isinstance(bias, Traced):
        raise b.refuse("a layer whose weight is computed from an activation", "a weight that is a parameter works")


def _convolution(
    b: Builder, value: Traced, weight: Tensor, bias: Tensor | None,
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int,
) -> Traced:  # fmt: skip
    operand = b.image(value)
    h, w, c = b.built.shape_of(operand)
    if c != weight.shape[1] * groups:
        raise b.refuse(f"a convolution of {c} channels", f"its weight wants {weight.shape[1] * groups}")
    origins = b.origins(weight) if bias is None else b.origins(weight) | b.origins(bias)
    weight = weight.detach().double().reshape(*weight.shape, *(1,) * (4 - weight.dim()))
    size = [
        (v + 2 * p - d * (k - 1) - 1) // s + 1
        for v, p, d, k, s in zip((h, w), padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    out = weight.shape[0]
    node = graph.Conv(
        name=b.label, inputs=[operand], shape=(size[0], size[1], out), weight=weight, origins=origins,
        bias=torch.zeros(out, dtype=torch.float64) if bias is None else bias.detach().double(),
        stride=stride, padding=padding, dilation=dilation, groups=int(groups),
    )  # fmt: skip
    return b.add(node, value)


def _batch_norm(
    b: Builder, input: Traced, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Traced:  # fmt: skip
    if running_mean is None or running_var is None:
        raise b.refuse("batch norm without running statistics", "track_running_stats=True works")
    if training:
        raise b.refuse("batch norm in training mode", "module.eval() must turn it off")
    factor = (running_var.double() + eps).rsqrt()
    if weight is not None:
        factor = factor * weight.double()
    shift = -running_mean.double() * factor
    if bias is not None:
        shift = shift + bias.double()
    return b.affine(input, factor, shift, frozenset() if weight is None else b.origins(weight))


def _instance_norm(
    b: Builder, input: Traced, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Traced:  # fmt: skip
    if use_input_stats or running_mean is None or running_var is None:
        raise b.refuse(
            "instance norm by the statistics of each image",
            "nn.InstanceNorm2d(C, track_running_stats=True) in evaluation mode and nn.BatchNorm2d can, theirs are constants",
        )
    return _batch_norm(b, input, running_mean, running_var, weight, bias, eps=eps)


# --- arithmetic ---


def _constant(b: Builder, value: Traced, other: Any) -> Tensor:
    """A scalar, or a tensor with one value a channel, as (1,) or (C,) float64."""
    constant = torch.as_tensor(other).detach().double()
    if constant.numel() == 1:
        return constant.reshape(1)
    shape = value.origin.shape
    aligned = constant.reshape((1,) * (len(shape) - constant.dim()) + tuple(constant.shape))
    if aligned.dim() < 2 or aligned.shape[1] != shape[1] or aligned.numel() != shape[1]:
        raise b.refuse(f"a constant of shape {tuple(constant.shape)}", "a scalar or one value a channel works")
    return aligned.reshape(shape[1])


def _add(b: Builder, input: Any, other: Any, *, alpha: float = 1) -> Traced:
    return _sum(b, input, other, 1.0, 1.0 * alpha)


def _sub(b: Builder, input: Any, other: Any, *, alpha: float = 1) -> Traced:
    return _sum(b, input, other, 1.0, -1.0 * alpha)


def _rsub(b: Builder, input: Any, other: Any, *, alpha: float = 1) -> Traced:
    return _sum(b, input, other, -1.0 * alpha, 1.0)


def _sum(b: Builder, left: Any, right: Any, sign_left: float, sign_right: float) -> Traced:
    if not isinstance(right, Traced):
        return b.affine(left, sign_left, _constant(b, left, right) * sign_right)
    if not isinstance(left, Traced):
        return b.affine(right, sign_right, _constant(b, right, left) * sign_left)
    if sign_left != 1:
        left = b.affine(left, sign_left, 0.0)
    if sign_right != 1:
        right = b.affine(right, sign_right, 0.0)
    operands = [b.image(v) for v in (left, right)]
    shapes = [b.built.shape_of(i) for i in operands]
    if shapes[0] != shapes[1]:
        raise b.refuse(f"an addition of {shapes[0]} and {shapes[1]} (H, W, C)", "operands of one shape work")
    return b.add(graph.Add(name=b.label, inputs=operands, shape=shapes[0]), left)


def _mul(b: Builder, input: Any, other: Any) -> Traced:
    if not isinstance(other, Traced):
        return b.affine(input, _constant(b, input, other), 0.0)
    if not isinstance(input, Traced):
        return b.affine(other, _constant(b, other, input), 0.0)
    values = [_gate(v) for v in (input, other)]
    operands = [b.image(v) for v in values]
    shapes = [b.built.shape_of(i) for i in operands]
    if shapes[0] == (1, 1, shapes[0][2]) != shapes[1]:
        operands.reverse()
        shapes.reverse()
        values.reverse()
    if shapes[1] not in (shapes[0], (1, 1, shapes[0][2])):
        raise b.refuse(f"a product of {shapes[0]} and {shapes[1]} (H, W, C)", "one shape, or a gate (1, 1, C), works")
    return b.add(graph.Mul(name=b.label, inputs=operands, shape=shapes[0]), values[0])


def _gate(value: Traced) -> Traced:
    """The (N, C, 1, 1) that was expanded over an image, if it was; products do so themselves."""
    if value.origin.dim() == 4 and value.origin.stride()[2:] == (0, 0):
        return Traced(value.origin[:, :, :1, :1], value.label, value.builder)
    return value


def _div(b: Builder, input: Any, other: Any, *, rounding_mode: str | None = None) -> Traced:
    if isinstance(other, Traced) or rounding_mode is not None:
        raise b.refuse("a division by an activation", "division by a constant works")
    return b.affine(input, 1 / _constant(b, input, other), 0.0)


def _neg(b: Builder, input: Traced) -> Traced:
    return b.affine(input, -1.0, 0.0)


def _clamp(b: Builder, input: Traced, min: Any = None, max: Any = None) -> Traced:
    return b.clamp(input, -math.inf if min is None else float(min), math.inf if max is None else float(max))


def _hardtanh(b: Builder, input: Traced, min_val: float = -1.0, max_val: float = 1.0) -> Traced:
    return b.clamp(input, float(min_val), float(max_val))


def _prelu(b: Builder, input: Traced, weight: Tensor) -> Traced:
    if isinstance(weight, Traced):
        raise b.refuse("a PReLU whose slopes are computed from an activation", "slopes that are a parameter work")
    if weight.numel() == 1:
        slope = float(weight)
        return b.pointwise(input, lambda x: F.leaky_relu(x, slope))
    if weight.numel() != input.origin.shape[1]:
        raise b.refuse(
            f"PReLU with {weight.numel()} slopes on {input.origin.shape[1]} channels", "one, or one a channel, works"
        )
    slopes = weight.detach().double().reshape(-1, 1, 1)
    return b.pointwise(input, lambda x: torch.where(x > 0, x, x * slopes.to(x.dtype)))


# --- moves ---


def _cat(b: Builder, tensors: Sequence[Any], dim: int = 0, *, axis: int | None = None) -> Traced:
    dim = dim if axis is None else axis
    first = next(t for t in tensors if isinstance(t, Traced)).origin
    values = [t if isinstance(t, Traced) else _zeros(b, t) for t in tensors]
    if dim % first.dim() != 1:
        raise b.refuse(f"a concat over dimension {dim}", "a concat over channels (dim=1) works")
    if any(not bool((v.origin >= 0).any()) for v in values):
        return b.value(torch.cat([v.origin.expand(2, *v.origin.shape[1:]) for v in values], 1))  # zeros are padding
    operands = [b.image(v) for v in values]
    shapes = [b.built.shape_of(i) for i in operands]
    if len({shape[:2] for shape in shapes}) > 1:
        raise b.refuse(f"a concat of {', '.join(map(str, shapes))} (H, W, C)", "operands of one height and width work")
    shape = (*shapes[0][:2], sum(s[2] for s in shapes))
    return b.add(graph.Concat(name=b.label, inputs=operands, shape=shape), values[0])


def _zeros(b: Builder, constant: Any) -> Traced:
    """A constant as places of zeros."""
    if isinstance(constant, Tensor) and not bool(constant.any()):
        return b.value(torch.full(constant.shape, -1))
    raise b.refuse(
        "a concat of activations and a constant that is not zero",
        "zeros can be concatenated; a class token or a table of positions belongs to a transformer, and only convolutional "
        "networks can",
    )


def _new_zeros(b: Builder, input: Traced, *size: Any, **rest: Any) -> Traced:
    return b.value(torch.full(torch.empty(0).new_zeros(*size).shape, -1))


def _zeros_like(b: Builder, input: Traced, **rest: Any) -> Traced:
    return b.value(torch.full(input.origin.shape, -1))


def _setitem(b: Builder, input: Any, key: Any, value: Any) -> None:
    if not isinstance(input, Traced):
        raise b.refuse("an activation written into a constant", "torch.zeros_like(x) of an activation can be written to")
    if not isinstance(value, Traced) and bool(torch.as_tensor(value).any()):
        raise b.refuse("a constant written into an activation", "zeros can be written")
    input.origin[key] = value.origin if isinstance(value, Traced) else -1
    input.label = b.label


def _pad(b: Builder, input: Traced, pad: Any, mode: str = "constant", value: Any = None) -> Traced:
    if mode != "constant":
        return b.value(resampling.padded(input, list(pad), mode))
    if value not in (None, 0, 0.0):
        raise b.refuse(f"padding with value {value}", "padding with zeros, by reflection or by replication works")
    return b.value(F.pad(input.origin, list(pad), value=-1))


def _to(b: Builder, input: Traced, *args: Any, **kwargs: Any) -> Traced:
    """A cast or copy, which must stay float32 on the CPU."""
    like: tuple[Any, ...] = tuple(torch.empty(0) if isinstance(a, Traced) else a for a in args)
    changed: Tensor = torch.empty(0).to(*like, **kwargs)
    if changed.dtype != torch.float32:
        raise b.refuse(f"a cast to {changed.dtype}", "float32 works: rounding to int8 is what lowering does")
    return input


def _type(b: Builder, input: Traced, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    if dtype is None:
        return "torch.FloatTensor"
    return _to(b, input, torch.empty(0).type(dtype).dtype)


def _cast(dtype: torch.dtype) -> Callable[..., Traced]:
    return lambda b, input, *args, **kwargs: _to(b, input, dtype)


def _same(b: Builder, input: Traced, *args: Any, **kwargs: Any) -> Traced:
    return input


def _clone(b: Builder, input: Traced, **kwargs: Any) -> Traced:
    return Traced(input.origin.clone(), input.label, b)


def _dropout(b: Builder, input: Traced, p: float = 0.5, training: bool = True, train: bool | None = None) -> Traced:
    if (training if train is None else train) and p > 0:
        raise b.refuse(
            "dropout that stays on at evaluation (it draws random numbers)", "F.dropout(x, p, training=self.training) can"
        )
    return input


def _dropout_off(b: Builder, input: Traced, p: float = 0.5, training: bool = False) -> Traced:
    return _dropout(b, input, p, training)


HANDLERS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "conv_transpose2d": enlarging.conv_transpose2d,
    "pixel_shuffle": enlarging.pixel_shuffle,
    "interpolate": resampling.interpolate,
    "upsample": resampling.interpolate,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "dropout": _dropout,
    "dropout1d": _dropout,
    "dropout2d": _dropout,
    "dropout3d": _dropout,
    "alpha_dropout": _dropout_off,
    "feature_alpha_dropout": _dropout_off,
    "relu": lambda b, input: b.clamp(input, 0.0, math.inf),
    "relu6": lambda b, input: b.clamp(input, 0.0, 6.0),
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda b, input, min: _clamp(b, input, min),
    "clamp_max": lambda b, input, max: _clamp(b, input, None, max),
    "prelu": _prelu,
    "max_pool2d": pooling.max_pool2d,
    "avg_pool2d": pooling.avg_pool2d,
    "adaptive_avg_pool2d": pooling.adaptive_avg_pool2d,
    "adaptive_max_pool2d": pooling.adaptive_max_pool2d,
    "mean": pooling.mean,
    "sum": pooling.sum_over,
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    "neg": _neg,
    "negative": _neg,
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "cat": _cat,
    "concat": _cat,
    "concatenate": _cat,
    "pad": _pad,
    "setitem": _setitem,
    "new_zeros": _new_zeros,
    "zeros_like": _zeros_like,
    "clone": _clone,
    "detach": _same,
    "requires_grad": _same,
    "cpu": _same,
    "to": _to,
    "type": _type,
    "type_as": lambda b, input, other: _to(b, input, other),
    "float": _cast(torch.float32),
    "double": _cast(torch.float64),
    "half": _cast(torch.float16),
    "bfloat16": _cast(torch.bfloat16),
}
"""By the function's name, without underscores"""

MOVES = frozenset(
    ("view", "reshape", "transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "flatten", "ravel", "unflatten",
     "squeeze", "unsqueeze", "chunk", "split", "split_with_sizes", "tensor_split", "narrow", "select", "unbind", "getitem",
     "channel_shuffle", "native_channel_shuffle", "pixel_unshuffle", "flip", "roll", "index_select",
     "view_as", "reshape_as", "expand", "expand_as", "contiguous", "iter", "t", "adjoint")
)  # fmt: skip
"""Functions that only move elements: they are run on the indices"""

POINTWISE = frozenset(
    ("hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh", "leaky_relu", "elu", "selu", "celu", "softplus", "mish",
     "softsign", "logsigmoid", "abs", "absolute", "exp", "log", "log1p", "sqrt", "rsqrt", "square", "pow", "sin", "cos", "erf",
     "tanhshrink", "hardshrink", "softshrink", "threshold", "reciprocal", "rrelu")
)  # fmt: skip
"""Functions of each element alone"""
