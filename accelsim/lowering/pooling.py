"""Pooling and means over the image: handlers of torch's functions, as in ``accelsim.lowering.operators``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accelsim.int8.network import Shape
from accelsim.lowering import graph
from accelsim.lowering.traced import Traced

if TYPE_CHECKING:
    from accelsim.lowering.builder import Builder


def pair(value: Any) -> tuple[int, int]:
    """A size given as one number or as two."""
    if isinstance(value, tuple | list):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


def max_pool2d(
    b: Builder, input: Traced, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Traced:  # fmt: skip
    """Largest value of each window."""
    if return_indices:
        raise b.refuse("max pooling with return_indices", "return_indices=False works")
    kernel, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
    stride = pair(stride or kernel)
    operand, shape = _pooled(b, input)
    sample = torch.empty(1, 1, *shape[:2])
    size = F.max_pool2d(sample, kernel, stride, padding, dilation, ceil_mode).shape
    node = graph.MaxPool(
        name=b.label, inputs=[operand], shape=(size[2], size[3], shape[2]),
        kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
    )  # fmt: skip
    return b.add(node)


def avg_pool2d(
    b: Builder, input: Traced, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: Any = None,
) -> Traced:  # fmt: skip
    """Mean of each window, where all windows have as many values."""
    kernel, padding = pair(kernel_size), pair(padding)
    stride = pair(stride or kernel)
    if divisor_override is not None:
        raise b.refuse("mean pooling with divisor_override", "divisor_override=None works")
    operand, shape = _pooled(b, input)
    sample = torch.empty(1, 1, *shape[:2])
    size = F.avg_pool2d(sample, kernel, stride, padding).shape
    if size != F.avg_pool2d(sample, kernel, stride, padding, ceil_mode).shape:
        raise b.refuse("mean pooling with partial windows", "ceil_mode=False works")
    if any(padding) and not count_include_pad:
        raise b.refuse("mean pooling that does not count its padding", "count_include_pad=True works")
    node = graph.MeanPool(
        name=b.label, inputs=[operand], shape=(size[2], size[3], shape[2]), kernel=kernel, stride=stride, padding=padding
    )
    return b.add(node)


def adaptive_avg_pool2d(b: Builder, input: Traced, output_size: Any) -> Traced:
    """Means over an even grid."""
    return _adaptive(b, input, output_size, averaged=True)


def adaptive_max_pool2d(b: Builder, input: Traced, output_size: Any, return_indices: bool = False) -> Traced:
    """Largest values over an even grid."""
    if return_indices:
        raise b.refuse("max pooling with return_indices", "return_indices=False works")
    return _adaptive(b, input, output_size, averaged=False)


def _adaptive(b: Builder, value: Traced, size: Any, averaged: bool) -> Traced:
    operand, shape = _pooled(b, value)
    wanted = size if isinstance(size, tuple | list) else (size, size)
    out = tuple(s if w is None else int(w) for w, s in zip(wanted, shape[:2], strict=True))
    if any(s % o for s, o in zip(shape[:2], out, strict=True)):
        raise b.refuse(f"adaptive pooling of {shape[:2]} to {out}", "an output size that divides the input, such as 1, works")
    kernel = (shape[0] // out[0], shape[1] // out[1])
    result = (out[0], out[1], shape[2])
    if averaged:
        return b.add(graph.MeanPool(name=b.label, inputs=[operand], shape=result, kernel=kernel, stride=kernel))
    node = graph.MaxPool(
        name=b.label, inputs=[operand], shape=result,
        kernel=kernel, stride=kernel, padding=(0, 0), dilation=(1, 1), ceil_mode=False,
    )  # fmt: skip
    return b.add(node)


def _pooled(b: Builder, value: Traced) -> tuple[int, Shape]:
    if value.origin.dim() != 4:
        raise b.refuse(f"pooling over {value.origin.dim() - 2} dimensions", "pool images (N, C, H, W)")
    operand = b.image(value)
    return operand, b.built.shape_of(operand)


def mean(b: Builder, input: Traced, dim: Any = None, keepdim: bool = False, *, axis: Any = None, dtype: Any = None) -> Traced:
    """A mean over rows, columns or both; also behind a view that put both in one dimension."""
    index = input.origin
    dim = axis if dim is None else dim
    if dim is None:
        raise b.refuse(
            "a sum or mean over a whole batch",
            "a mean over (2, 3), the image, works; shapes may decide what forward() does, values of an activation may not",
        )
    places = sorted(d % index.dim() for d in (dim if isinstance(dim, tuple | list) else [dim]))
    if index.dim() == 3 and places == [2] and (whole := _unrolled(b, index)) is not None:
        made = _adaptive(b, whole, 1, averaged=True).origin
        return b.value(made.flatten(2) if keepdim else made.flatten(1))
    if index.dim() == 3 and places == [2]:
        made = _adaptive(b, b.value(index[:, :, :, None]), 1, averaged=True).origin
        return b.value(made[:, :, :, 0] if keepdim else made[:, :, 0, 0])
    if index.dim() != 4 or not places or not set(places) <= {2, 3}:
        raise b.refuse(f"a mean over dimensions {dim}", "a mean over (2, 3), the image, works")
    size = [1 if d in places else None for d in (2, 3)]
    made = _adaptive(b, input, size, averaged=True).origin
    for place in [] if keepdim else reversed(places):
        made = made.select(place, 0)
    return b.value(made)


def _unrolled(b: Builder, index: Tensor) -> Traced | None:
    """The image of whose rows and columns (N, C, L) made one dimension, if it is one."""
    elements = b.elements(b.source_of(int(index.max())))
    return b.value(elements) if torch.equal(elements.flatten(2), index) else None


def sum_over(b: Builder, input: Traced, dim: Any = None, keepdim: bool = False, **rest: Any) -> Traced:
    """A sum over rows, columns or both: the mean, times how many."""
    made = mean(b, input, dim, keepdim, **rest)
    return b.affine(made, float(input.origin[0].numel() // made.origin[0].numel()), 0.0)
