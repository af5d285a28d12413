"""The device's end of the link in one run: what it holds between messages, as ``services.codec.device_side`` and
``r2f.inprocess`` move it on. Another run has another one; nothing goes from one to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from accelsim.faults.permanent import FaultMap
from accelsim.int8.network import Activation, Conv, Network, UInt8
from services.codec.core import inputs, layers, model
from services.codec.core.bodies import CodecError
from services.codec.core.kept import Kept
from services.codec.core.sent import SentImages, SentLayer, SentModel
from services.scheme import CHAINED, SEGMENT_BYTES, Scheme, View
from services.views import seen

ALL = 1 << 62
"""``keep_bytes`` of a device that never runs out."""


class WrongBase(CodecError):
    """A model that builds on what is not here, another version or another network of that number: it must come whole."""


class DeviceEnd:
    """The run's network, what the server has been sent of the samples, and the pass under way.

    Calls in the order of a pass: ``model`` once, ``begin``, ``layer`` for each MAC layer in order; ``correct`` and
    ``confirm`` when the server asks. All raise ValueError, CodecError for bytes, and are then as before.
    ``keep_bytes`` bounds what is kept for repairs, with ``fits`` and ``asks``; ``path`` is the engine's that repairs.
    """

    def __init__(self, path: str, keep_bytes: int = ALL) -> None:
        self.path = path
        self.keep_bytes = keep_bytes
        self.network: Network | None = None
        self.version = 0
        """Of the network, 0 for none."""
        self.known: set[bytes] = set()
        """Hashes of the samples that the server has been sent."""
        self.running: tuple[int, int] | None = None
        """(iteration, attempt) of the pass under way."""
        self.scheme = CHAINED
        """Of that pass."""
        self.batch = 0
        """Its images."""
        self.kept: Kept | None = None
        """What repairs may need of it; None where there are none."""
        self.asked = -1
        """The layer up to which the server was last asked to confirm what it has, -1 once it has answered."""

    # ---- the network, down ----

    def model(self, sent: SentModel) -> bool:
        """Take a network: False for one that is here already. It ends the pass under way.

        Raises WrongBase for one that builds on another version than is here, CodecError for one that is not what it says.
        """
        if self.network is not None and sent.version == self.version and model.digest(self.network) == sent.digest:
            return False
        if sent.base not in (0, self.version):
            raise WrongBase(f"model {sent.version} builds on {sent.base}, here is {self.version}")
        try:
            network = model.decode(self.network if sent.base else None, sent.body)
            if model.digest(network) != sent.digest:
                raise CodecError(f"model {sent.version} does not have the digest sent with it")
        except CodecError as error:
            if sent.base:
                raise WrongBase(f"model {sent.version} cannot be built on {sent.base}: {error}") from error
            raise
        self.network, self.version = network, sent.version
        self.end()
        return True

    # ---- what the device computed, up ----

    def begin(
        self,
        scheme: Scheme,
        iteration: int,
        attempt: int,
        images: UInt8,
        files: Sequence[bytes] = (),
        view: View | None = None,
        known: FaultMap | None = None,
    ) -> SentImages:
        """Begin a pass on images, uint8 (N, H, W, C), and end the one before.

        ``files`` are image files of just these pixels, where the camera gives such: then they cross the link. With a ``view``
        the device runs on what that makes of the images; what crosses the link are the images as they were before.
        ``known`` are the permanent faults that the server predicts with.
        """
        network = self._network()
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0 or images.shape[1:] != network.input_shape:
            raise ValueError(
                f"images: {images.dtype} of shape {images.shape}, expected uint8 (N, {str(network.input_shape)[1:-1]}), N > 0"
            )
        if files and len(files) != len(images):
            raise ValueError(f"{len(files)} files for {len(images)} images")
        hashes = tuple(inputs.sample_hash(image) for image in images)
        # A repeat is sent whole: what the first attempt sent may be what got lost.
        there = self.known if attempt == 0 and not scheme.float_inputs else frozenset[bytes]()
        fresh = [i for i, name in enumerate(hashes) if name not in there]
        if scheme.float_inputs:
            body = inputs.floats(images[fresh])
        else:
            body = inputs.pack([files[i] for i in fresh]) if files else inputs.encode(images[fresh])
        self.end()
        self.known.update(hashes)
        self.running, self.scheme, self.batch = (iteration, attempt), scheme, len(images)
        x = network.quantize_images(seen(images, view))
        self.kept = Kept(network, self.path, iteration, x, known) if scheme.repairs else None
        return SentImages(hashes, network.input_shape, body, tuple(fresh))

    def end(self) -> None:
        """Drop what was of the pass under way."""
        self.running, self.kept, self.asked = None, None, -1

    def lost(self) -> None:
        """The server's end started anew: it knows no samples."""
        self.known.clear()

    def forget(self, names: Iterable[bytes]) -> None:
        """The server's end has these images no more: they are sent whole where they are next used."""
        self.known.difference_update(names)

    def check(self, index: int, shape: tuple[int, ...], dtype: str) -> None:
        """Raises ValueError where ``shape`` and ``dtype`` are not those of MAC layer ``index`` in the pass under way."""
        network = self._network()
        layer = network.layers[index] if 0 <= index < len(network.layers) else None
        if not isinstance(layer, Conv):
            raise ValueError(f"layer {index} is no MAC layer of the network's {len(network.layers)}")
        if shape != (self.batch, *layer.shape):
            raise ValueError(f"outputs of shape {shape} for layer {index}, expected {(self.batch, *layer.shape)}")
        if dtype != layer.dtype.name:
            raise ValueError(f"{dtype} outputs for layer {index}, expected {layer.dtype.name}")

    def layer(self, index: int, actual: Activation, vote: Activation | None) -> SentLayer:
        """What goes up of MAC layer ``index``: ``encode`` and ``keep``."""
        sent = self.encode(index, actual, vote)
        self.keep(actual, sent)
        return sent

    def encode(self, index: int, actual: Activation, vote: Activation | None) -> SentLayer:
        """A MAC layer's actual outputs as increments against its vote, both of the layer's dtype and (N, H, W, C); None sends
        them as they are."""
        self.check(index, actual.shape, actual.dtype.name)
        reference = vote if self.kept is None else self.kept.reference(index, vote)
        return SentLayer(index, layers.digest(actual), layers.encode(actual, reference, self.scheme.codec))

    def keep(self, actual: Activation, sent: SentLayer) -> None:
        """Remember what was sent of a layer, for repairs."""
        if self.kept is not None:
            self.kept.keep(sent.index, actual, sent.body)

    # ---- repairs ----

    def correct(self, index: int, digests: bytes | None) -> dict[int, bytes]:
        """Corrections by layer for what the server asks: see ``Kept.correct``. Without anything kept there are none."""
        return {} if self.kept is None else self.kept.correct(index, digests)

    def confirm(self, index: int) -> None:
        """The server has all layers up to ``index`` right."""
        if self.kept is not None:
            self.kept.confirm(index)
        if index >= self.asked:
            self.asked = -1

    def asks(self, index: int) -> bool:
        """Whether the server is to confirm all up to ``index``, the last layer encoded: room for another message is short."""
        if self.kept is None or self.kept.nbytes + self._largest() <= self.keep_bytes:
            return False
        self.asked = index
        return True

    def fits(self, nbytes: int) -> bool:
        """Whether there is room to keep so many bytes. Without a question open there is: the server has nothing to answer."""
        return self.kept is None or self.asked < 0 or self.kept.nbytes + nbytes <= self.keep_bytes

    def _largest(self) -> int:
        """The most that one further message can bring, in bytes, if its layers come as the agent gathers them."""
        return SEGMENT_BYTES + self.batch * max(math.prod(layer.shape) for _, layer in self._network().convs())

    def _network(self) -> Network:
        if self.network is None:
            raise ValueError("there is no network yet")
        return self.network
