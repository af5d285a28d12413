"""From a torch module to the int8 network."""

from accelsim.lowering.errors import LoweringError
from accelsim.lowering.fold import fold
from accelsim.lowering.lower import Image, lower, lower_ways
from accelsim.lowering.pixels import normalise
from accelsim.lowering.trace import trace

__all__ = ["Image", "LoweringError", "fold", "lower", "lower_ways", "normalise", "trace"]
