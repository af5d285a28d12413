"""What goes wrong in lowering."""


class LoweringError(ValueError):
    """A module, or one of its operators, has no int8 network; the text names the node and the nearest that works."""
