"""Accelerators that a device drives: the protocol, and the simulated one."""

from accelsim.accelerators.simulated import Accelerator, Simulated

__all__ = ["Accelerator", "Simulated"]
