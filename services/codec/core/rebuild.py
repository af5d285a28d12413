"""A pass of the device as the server rebuilds it: each layer predicted, what the device did differently added, and checked."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Activation, Conv, Network, UInt8
from accelsim.int8.walk import walk
from services.codec.core import layers, repair
from services.codec.core.sent import SentLayer
from services.scheme import Scheme


@dataclass(frozen=True, slots=True, eq=False)
class Rebuilt:
    """A MAC layer's actual outputs (N, H, W, C), of its dtype. ``faithful``: they have the device's digest."""

    index: int
    actual: Activation
    faithful: bool
    repaired: int
    """Elements that a correction mended."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A layer that does not have the device's digest: nothing after it can be rebuilt until it is mended.

    ``digests`` are ``repair.channel_digests`` of what the server has, little-endian; None asks for the correction of all
    layers from this one on.
    """

    index: int
    digests: bytes | None


class Rebuild:
    """One pass. Layers are rebuilt in order, whatever the order in which their segments come.

    ``start`` with the images, ``take`` each segment, then ``next`` until it gives None; at Wrong, ``mend`` and ``next`` again.
    """

    def __init__(self, network: Network, engine: Engine, scheme: Scheme) -> None:
        self.network = network
        self.engine = engine
        self._repairs = scheme.repairs
        self._alone = scheme.way.reference == "run"
        """Whether layers are predicted from the batch alone, else from what was rebuilt before them."""
        self._values: dict[int, Activation] = {}
        """What predictions are computed from."""
        self._steps = walk(network, self._values)
        self._at: tuple[int, Conv, Activation] | None = None
        """The MAC layer whose turn it is, and its input."""
        self._batch = 0
        """Images, 0 until they are here."""
        self._early: dict[int, tuple[Sequence[SentLayer], bool]] = {}
        self._segment = 0
        """The next one."""
        self._due: deque[SentLayer] = deque()
        self._corrections: dict[int, bytes] = {}
        self._requests = 0
        self._waiting = False
        """For the answer to the last of them."""
        self._asked = -1
        self._done = -1
        """The last layer rebuilt."""

    @property
    def started(self) -> bool:
        """Whether the images are here."""
        return self._batch > 0

    def start(self, images: UInt8) -> None:
        """Begin with the images that the device ran on, uint8 (N, H, W, C)."""
        self.feed(self.network.quantize_images(images))

    def feed(self, x: Activation) -> None:
        """``start`` with the images as the network takes them, int8 (N, H, W, C)."""
        self._values[INPUT] = x
        self._batch = len(x)

    def take(self, number: int, segment: Sequence[SentLayer], *, confirm: bool = False) -> bool:
        """Some layers; False for a segment that was taken before. ``confirm``: see ``confirmed``."""
        if number < self._segment or number in self._early:
            return False
        if number > self._segment + len(self.network.layers):
            raise ValueError(f"segment {number}, the next one is {self._segment}")
        self._early[number] = (segment, confirm)
        return True

    def next(self) -> Rebuilt | Wrong | None:
        """The next layer, or what is to be asked for; None where the next layer, the images or a correction are not here.

        Raises ValueError for a layer that cannot be rebuilt; it stays due, so the pass cannot go on and must be repeated.
        """
        if not self.ready():
            return None
        prediction = self.predict()
        return self.check(prediction, self.decode(prediction))

    def ready(self) -> bool:
        """Whether a layer is due that ``predict``, ``decode`` and ``check``, the steps of ``next``, can be called for."""
        if not self.started or self._waiting:
            return False
        while not self._due and self._segment in self._early:
            segment, confirm = self._early.pop(self._segment)
            self._segment += 1
            self._due.extend(segment)
            if confirm and segment:
                self._asked = segment[-1].index
        return bool(self._due)

    def predict(self) -> Activation | None:
        """The fault-free outputs of the layer that is due, (N, H, W, C); None where nothing needs them."""
        sent, (index, _, x) = self._due[0], self._next_mac()
        if self._alone or layers.needs_prediction(sent.body):
            return self.engine.fault_free(index, [x])
        return None

    def decode(self, prediction: Activation | None) -> Activation:
        """The outputs of the layer that is due, before any correction."""
        _, layer, _ = self._next_mac()
        return layers.decode(self._due[0].body, prediction, (self._batch, *layer.shape), layer.dtype)

    def check(self, prediction: Activation | None, actual: Activation) -> Rebuilt | Wrong:
        """Apply the layer's correction, if there is one, and go on to the next layer unless this one is wrong."""
        sent, (index, _, _) = self._due[0], self._next_mac()
        predicted = layers.needs_prediction(sent.body)
        repaired = 0
        if predicted and index in self._corrections:
            mended = repair.apply(self._corrections[index], actual)
            repaired = int(np.count_nonzero(mended != actual))
            actual = mended
        faithful = layers.digest(actual) == sent.digest
        if not faithful:
            if not predicted or index in self._corrections:
                raise ValueError(f"layer {index} does not have its digest, though it was sent whole or corrected")
            if self._repairs:
                return self._wrong(index, actual)
        if self._alone and prediction is not None:
            self._values[index] = prediction
        else:
            self._values[index] = actual
        self._due.popleft()
        self._at, self._done = None, index
        return Rebuilt(index, actual, faithful, repaired)

    def mend(self, corrections: Mapping[int, bytes]) -> bool:
        """The answer to what was Wrong; False where nothing was asked for. Corrections are bodies by layer."""
        if not self._waiting:
            return False
        self._corrections.update(corrections)
        self._waiting = False
        return True

    def confirmed(self) -> int | None:
        """The layer up to which the device wants to know that all are right, once they are; then None until it asks again."""
        if not 0 <= self._asked <= self._done:
            return None
        asked, self._asked = self._asked, -1
        return asked

    def _wrong(self, index: int, actual: Activation) -> Wrong:
        if self._requests == 2:
            raise ValueError(f"layer {index} is wrong after two repairs")
        self._requests += 1
        self._waiting = True
        first = self._requests == 1
        return Wrong(index, repair.channel_digests(actual).astype("<u4").tobytes() if first else None)

    def _next_mac(self) -> tuple[int, Conv, Activation]:
        """The MAC layer whose turn it is; those before it that the device runs exactly are computed on the way."""
        while self._at is None:
            step = next(self._steps, None)
            if step is None:
                raise ValueError(f"layer {self._due[0].index} came behind the last of {len(self.network.layers)}")
            index, layer, operands = step
            if isinstance(layer, Conv):
                self._at = (index, layer, operands[0])
            else:
                self._values[index] = self.engine.fault_free(index, operands)
        index, layer, _ = self._at
        if self._due[0].index != index:
            raise ValueError(f"layer {self._due[0].index} came where layer {index} of {len(self.network.layers)} is next")
        return self._at
