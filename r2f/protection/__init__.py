"""Which parts of a network to protect from faults, for how many cycles (section V.B of the paper); ``r2f protect``."""
