"""How long the trainer waits for a device behind a slow link before it asks again."""

from __future__ import annotations

import math
from typing import Final

from accelsim.int8 import storage
from accelsim.int8.network import Network
from broker.link import profile
from broker.link.clock import transfer_s
from r2f.settings import Settings
from services.bus.messages import ROOT
from services.scheme import SEGMENT_BYTES

SILENCE_S: Final = 20.0
"""Where no link is between."""


def silence_s(settings: Settings, network: Network) -> float:
    """Seconds without a word of the device that may be the link's alone: nothing else may reach the trainer while the network
    goes down whole, and a batch and the largest message of outputs come up, each as large as they get.

    A link is between where it is real: live, or that of a broker elsewhere.
    """
    if settings.link is None or not (settings.live or settings.broker is not None):
        return SILENCE_S
    link = profile(settings.link)
    images = settings.batch * math.prod(network.input_shape) * (4 if settings.scheme.float_inputs else 1)
    layer = settings.batch * max(math.prod(layer.shape) for _, layer in network.convs())
    return SILENCE_S + sum(
        (
            transfer_s(f"{ROOT}/{settings.device}/down/model", len(storage.to_bytes(network)), link, "down"),
            transfer_s(f"{ROOT}/{settings.device}/up/inputs", images, link, "up"),
            transfer_s(f"{ROOT}/{settings.device}/up/layers", max(layer, SEGMENT_BYTES), link, "up"),
        )
    )
