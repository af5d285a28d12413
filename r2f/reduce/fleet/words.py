"""The words of ``r2f fleet``; imports nothing heavy, for ``r2f --help``."""

from __future__ import annotations

from typing import Final, Literal

Policy = Literal["fixed", "by-rate", "by-damage", "by-map", "until-met", "by-map-until-met"]
SETTINGS: Final = ("network", "weights", "modules", "data", "image-size", "mean", "std", "classes", "activations")
"""Those that say which network and data; how chips are retrained is the resilience table's."""
