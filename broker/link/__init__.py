"""The link between device and server: as a clock for experiments, and as a shaping proxy for demos."""

from broker.link.clock import MSS, STAMP, WireBytes, message_bytes, packet_bytes, seconds, stream_bytes, transfer_s, wire_bytes
from broker.link.profiles import PROFILES, Direction, Profile, profile
from broker.link.proxy import Shaped, shape

__all__ = [
    "MSS",
    "PROFILES",
    "STAMP",
    "Direction",
    "Profile",
    "Shaped",
    "WireBytes",
    "message_bytes",
    "packet_bytes",
    "profile",
    "seconds",
    "shape",
    "stream_bytes",
    "transfer_s",
    "wire_bytes",
]
