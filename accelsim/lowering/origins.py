"""Which of a module's parameters a tensor comes from: one weight behind several layers is found however it is reached."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from accelsim.lowering.traced import Traced, leaves


class Origin(NamedTuple):
    """Elements ``first`` to ``end`` - 1 of a parameter, as they lie in memory."""

    parameter: str
    first: int
    end: int

    def overlaps(self, other: Origin) -> bool:
        """Whether both are of the same elements, more than one: a number that scales two weights does not make them one."""
        first, end = max(self.first, other.first), min(self.end, other.end)
        return self.parameter == other.parameter and end - first > 1


class Origins(TorchFunctionMode):
    """While it is entered, writes down what torch computes from the parameters of ``module``: views, products, norms."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._names = {parameter.untyped_storage().data_ptr(): name for name, parameter in module.named_parameters()}
        self._computed: dict[int, tuple[Tensor, frozenset[Origin]]] = {}
        """By ``id``; the tensor is kept, so that no other can get that number."""

    def of(self, tensor: Tensor) -> frozenset[Origin]:
        """Where a tensor's values come from; empty where they are no parameter's."""
        if tensor.is_sparse or tensor.is_meta:
            return frozenset()
        if (name := self._names.get(tensor.untyped_storage().data_ptr())) is not None and tensor.numel():
            first = int(tensor.storage_offset())
            last = sum(int(size - 1) * int(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True))
            return frozenset({Origin(name, first, first + last + 1)})
        return self._computed.get(id(tensor), (tensor, frozenset()))[1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls ``func`` and notes what its results come from."""
        result = func(*args, **(kwargs or {}))
        made = [value for value in leaves(result) if isinstance(value, Tensor) and not isinstance(value, Traced)]
        if made:
            given = [value for value in leaves((args, kwargs)) if isinstance(value, Tensor) and not isinstance(value, Traced)]
            found = frozenset().union(*map(self.of, given))
            if found:
                self._computed.update((id(value), (value, found)) for value in made)
        return result
