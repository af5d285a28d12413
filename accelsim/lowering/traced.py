"""The tensor that a module is run on to be traced: no values, but where each element comes from.

``Traced`` is a torch tensor to whoever asks for its shape, so that ``forward`` runs as it always does: branches, loops and
arithmetic on shapes need no care. Operators come to ``Builder`` (``accelsim.lowering.builder``) by torch's
``__torch_function__``, and with them the graph.

Operators that only move elements (view, transpose, chunk, slices, pad, flatten ...) are not matched as patterns: they are
run on the *indices* of the elements, and what comes out says which channels and pixels ended up where. So a channel
shuffle is recognised however it is written; and views share memory as torch's do, so that what an in-place operator
changes is changed in every view of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accelsim.lowering.errors import LoweringError

if TYPE_CHECKING:
    from accelsim.lowering.builder import Builder


class Traced(Tensor):
    """What the traced module holds instead of an activation, for a batch of two, so that mixing images is noticed."""

    origin: Tensor
    """int64, of the tensor's shape: each element's number among those of all nodes (``Builder.elements``), -1 for a zero."""
    label: str
    """Name of the operator that gave it"""
    builder: Builder

    @staticmethod
    def __new__(cls, index: Tensor, label: str, builder: Builder) -> Traced:
        """A tensor of ``index``'s shape that claims to be float32 on the CPU."""
        made: Traced = torch.Tensor._make_wrapper_subclass(cls, index.shape, dtype=torch.float32)
        made.origin, made.label, made.builder = index, label, builder
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Every torch function of a traced tensor comes here. Raises LoweringError for what has no int8 layer."""
        kwargs = kwargs or {}
        value = next(leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Traced))
        with torch._C.DisableTorchFunctionSubclass():
            return value.builder.call(func, tuple(args), kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuses what torch calls from outside of Python, where there is no name of the module's to give."""
        raise LoweringError(
            f"{func} is called from compiled code (TorchScript, an extension), which cannot be traced; give the Python module"
        )


def leaves(value: Any) -> Iterator[Any]:
    """All values in nested tuples, lists and dicts."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested tuples, lists and dicts with ``change`` of each value."""
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(replaced(item, change) for item in value)
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    return change(value)
