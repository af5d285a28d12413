"""The contract between the services: topics, messages, tensors by reference, chunks, and one client."""

from services.bus.address import BusError, Tls
from services.bus.client import Bus
from services.bus.encoding import MessageError

__all__ = ["Bus", "BusError", "MessageError", "Tls"]
