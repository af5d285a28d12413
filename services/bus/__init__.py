"""The contract between the services: topics, messages, tensors by reference, chunks, and one client."""

from services.bus.client import Bus, BusError
from services.bus.encoding import MessageError

__all__ = ["Bus", "BusError", "MessageError"]
