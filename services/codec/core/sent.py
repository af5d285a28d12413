"""What one end of the link gives the other, as plain values; the programs put them into messages and take them out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SentModel:
    """A version of the network; ``body`` adds to version ``base``, 0 for none (``core.model``)."""

    version: int
    base: int
    digest: int
    """``model.digest`` of the network that it must become."""
    body: bytes


@dataclass(frozen=True, slots=True)
class SentImages:
    """A batch: every image by its content, and those that the server has not been sent (``core.inputs``)."""

    hashes: tuple[bytes, ...]
    shape: tuple[int, int, int]
    """(H, W, C) of one image."""
    fresh: bytes
    fresh_of: tuple[int, ...]
    """Positions in ``hashes`` of the images in ``fresh``."""


@dataclass(frozen=True, slots=True)
class SentLayer:
    """A MAC layer's actual outputs (``core.layers``)."""

    index: int
    digest: int
    """Of the actual outputs."""
    body: bytes
