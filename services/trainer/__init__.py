"""Backward pass, optimiser, quantising, deploying: the server's half of the loop."""

from services.trainer.table1 import Data, DeviceError, Mode, Server, serving

__all__ = ["Data", "DeviceError", "Mode", "Server", "serving"]
