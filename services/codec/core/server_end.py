"""The server's end of the link in one run: what it holds between messages, as ``services.codec.server_side`` and
``r2f.inprocess`` move it on. Another run has another one; nothing goes from one to the next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from accelsim.engine import Engine
from accelsim.faults.permanent import FaultMap
from accelsim.faults.worn import exact
from accelsim.int8.network import Network, UInt8
from services.codec.core import inputs, model
from services.codec.core.rebuild import Rebuild
from services.codec.core.samples import Samples
from services.codec.core.sent import SentImages, SentModel
from services.scheme import Scheme

MAX_BATCH = 1024
SAMPLE_CACHE_BYTES = 1 << 30
"""Images kept by content, so that a later epoch sends hashes."""


class Version(NamedTuple):
    """A network as the trainer deployed it, and the iteration that made it (-1 for none)."""

    number: int
    iteration: int
    network: Network
    engine: Engine
    """That predicts: of the known permanent faults."""


class ServerEnd:
    """The run's versions of the network and its samples. ``path`` is the engine's.

    Calls in the order of an iteration: ``deploy``, ``model``, ``begin``, ``images``; the rest is the
    Rebuild's. All raise ValueError, CodecError for bytes, and are then as before.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.versions: dict[int, Version] = {}
        self.newest = 0
        """Version number, 0 for none."""
        self.sent = 0
        """The version that the device was sent last, and so is taken to have; 0 for none. Messages come in order, so it comes
        before the next one, acknowledged or not; where it does not, the device asks for that whole."""
        self.base = 0
        """The version that the one sent last builds on."""
        self.known: FaultMap | None = None
        """The device's permanent faults, as far as they were known in the last pass."""
        self.samples = Samples(SAMPLE_CACHE_BYTES, MAX_BATCH)
        self.missed: set[bytes] = set()
        """Names that were sent in place of images that are not here."""

    # ---- the network, down ----

    def deploy(self, number: int, iteration: int, network: Network) -> None:
        """Take a network from the trainer: the newest version."""
        self.versions[number] = Version(number, iteration, network, exact(network, self.path, self.known))
        self.newest = number

    def model(self) -> SentModel:
        """The newest version against the one sent before, or whole where it cannot build on that; older ones are dropped.

        Called again, it builds on the same.
        """
        if not self.newest:
            raise ValueError("no network was deployed yet")
        builds_on = self.base if self.sent == self.newest else self.sent
        new, base = self.versions[self.newest], self.versions.get(builds_on)
        try:
            body = model.encode(None if base is None else base.network, new.network)
        except model.OtherGraph:
            base, body = None, model.encode(None, new.network)
        self.sent, self.base = self.newest, builds_on
        self.versions = {n: v for n, v in self.versions.items() if n in (self.sent, self.base)}
        return SentModel(new.number, 0 if base is None else base.number, model.digest(new.network), body)

    def lost(self) -> None:
        """The device has no version that anything could build on: the next one goes whole."""
        self.sent = self.base = 0

    def forgotten(self) -> list[bytes]:
        """Names of images that are not here any more, for the device to send these whole; each is told once."""
        names, self.missed = [*self.samples.dropped(), *self.missed], set()
        return names

    # ---- what the device computed, up ----

    def begin(self, number: int, scheme: Scheme, known: FaultMap | None = None) -> Rebuild:
        """A pass of the device on version ``number``, predicted with the ``known`` permanent faults.

        Raises ValueError for a version that is not here.
        """
        version = self.versions.get(number)
        if version is None:
            raise ValueError(f"version {number} of the network is not here, {sorted(self.versions)} are")
        if known is not self.known:
            self.known = known
            self.versions = {n: v._replace(engine=exact(v.network, self.path, known)) for n, v in self.versions.items()}
            version = self.versions[number]
        return Rebuild(version.network, version.engine, scheme)

    def images(self, sent: SentImages, network: Network) -> UInt8:
        """The batch, uint8 (N, H, W, C), from what is fresh and what was sent before."""
        count = len(sent.hashes)
        if sent.shape != network.input_shape:
            raise ValueError(f"images of shape {sent.shape}, the network takes {network.input_shape}")
        if not 0 < count <= MAX_BATCH:
            raise ValueError(f"a batch of {count} images; 1 to {MAX_BATCH} are taken")
        if any(not 0 <= i < count for i in sent.fresh_of):
            raise ValueError(f"fresh_of names images outside the batch of {count}")
        if len(set(sent.fresh_of)) != len(sent.fresh_of):
            raise ValueError(f"fresh_of names {len(sent.fresh_of)} images, some of them twice")
        for name in sent.hashes:
            self.samples.get(name)  # as used just now, so that what is fresh does not push it out
        if sent.fresh_of:
            decoded = inputs.decode(sent.fresh, len(sent.fresh_of), sent.shape)
            for i, image in zip(sent.fresh_of, decoded, strict=True):
                if inputs.sample_hash(image) != sent.hashes[i]:
                    raise ValueError(f"image {i} does not have the hash sent with it")
                self.samples.remember(sent.hashes[i], image)
        found = [self.samples.get(name) for name in sent.hashes]
        missing = [i for i, image in enumerate(found) if image is None]
        if missing:
            self.missed.update(sent.hashes[i] for i in missing)
            raise ValueError(f"images {missing} were sent as hashes, but are not here")
        return np.stack([image for image in found if image is not None])
