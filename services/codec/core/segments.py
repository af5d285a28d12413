"""Segments of the codec's timing events that are no layers'."""

INPUTS, MODEL, REPAIR = -1, -2, -3
"""Repairs are told apart by their layer, from REPAIR downwards."""
