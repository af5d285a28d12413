"""From a torch module to the int8 network."""

from accelsim.lowering.build import LoweringError, fold, lower, trace

__all__ = ["LoweringError", "fold", "lower", "trace"]
