"""From a torch module to the int8 network."""

from accelsim.lowering.errors import LoweringError
from accelsim.lowering.fold import fold
from accelsim.lowering.lower import Holds, lower, lower_ways
from accelsim.lowering.pixels import black_and_white, normalise
from accelsim.lowering.trace import trace

__all__ = ["Holds", "LoweringError", "black_and_white", "fold", "lower", "lower_ways", "normalise", "trace"]
