"""Faults of an accelerator: soft errors, and worn-out processing elements (``accelsim.faults.permanent``)."""

from accelsim.faults.soft import SOFT_ERRORS, Burst, FaultModel, Flips, Key, Rates, Site, SoftErrors, distinct, draw

__all__ = ["SOFT_ERRORS", "Burst", "FaultModel", "Flips", "Key", "Rates", "Site", "SoftErrors", "distinct", "draw"]
