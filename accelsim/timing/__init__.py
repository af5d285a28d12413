"""Modelled time of a weight-stationary array."""

from accelsim.timing.array import (
    ACCUMULATOR_BYTES,
    Array,
    LayerTiming,
    NetworkTiming,
    Traffic,
    layer_cycles,
    layer_macs,
    layer_seconds,
    layer_timing,
    layer_traffic,
    network_timing,
    port_seconds,
    vote_seconds,
    write_back_seconds,
)

__all__ = [
    "ACCUMULATOR_BYTES",
    "Array",
    "LayerTiming",
    "NetworkTiming",
    "Traffic",
    "layer_cycles",
    "layer_macs",
    "layer_seconds",
    "layer_timing",
    "layer_traffic",
    "network_timing",
    "port_seconds",
    "vote_seconds",
    "write_back_seconds",
]
