"""What an array is asked: exact sums, and what vectors change of them, through as many networks as that takes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

import numpy as np

from accelsim.int8.network import Activation
from accelsim.timing import Array
from r2f.diagnosis.column import SHIFTS, Int8, Int64
from r2f.diagnosis.probes import FILTERS, Probe, Tile, answered, most, probe, wrapped

END_SHIFTS: Final = (25, 18, 11, 4, 0)
"""Seven bits each, one after another."""
VECTORS: Final = 512
"""The most vectors that one network is given at once."""


class Count:
    """Asks an array, and counts what it was asked so far."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.passes = self.vectors = self.answers = 0

    def ask(self, tiles: Sequence[Tile], vectors: Int64, beside: Int64 | None = None) -> Generator[Probe, Activation, Int64]:
        """Answers (T, tiles, C), by as many passes as the vectors and tiles need."""
        once = max(1, FILTERS // self.array.columns)
        parts = []
        for first in range(0, len(vectors), VECTORS):
            part = vectors[first : first + VECTORS]
            across = []
            for tile in range(0, len(tiles), once):
                some = tiles[tile : tile + once]
                outputs = yield probe(self.array, some, part, None if beside is None else beside[first : first + VECTORS])
                across.append(answered(outputs, len(some)))
                self.passes += 1
                self.vectors += len(part)
                self.answers += outputs.size
            parts.append(np.concatenate(across, axis=1))
        return np.concatenate(parts)

    def ends(self, vectors: Int64, own: Int64, weights: Sequence[Int8]) -> Generator[Probe, Activation, Int64]:
        """The sums (n, C) in full that leave the array with each of n weights (R, C) and the one of ``vectors`` (V, R) that
        ``own`` (n,) gives it."""
        pairs = own, np.arange(len(weights))
        once, twice = np.zeros((2, len(weights), self.array.columns), np.int64)
        top = once
        for shift in END_SHIFTS:
            for values, beside in ((once, None), (twice, vectors)):
                bias = np.clip(wrapped(-values), -most(self.array), most(self.array))
                tiles = [Tile(made, shift, of) for made, of in zip(weights, bias, strict=True)]
                read = (yield from self.ask(tiles, vectors, beside))[pairs]
                if beside is None and shift == END_SHIFTS[0]:
                    top = read
                values[:] = wrapped((read << shift) - bias)
        # Of twice a sum the top bit is lost. Where a sum is near 2^31, so that its bias was cut, the first reading knows it.
        half = (twice & 0xFFFFFFFF) >> 1
        found: Int64 = np.where(np.abs(top) < 48, once, np.where(top < 0, half - 2**31, half))
        return found

    def differences(self, vectors: Int64, weights: Sequence[Int8], ends: Int64) -> Generator[Probe, Activation, Int64]:
        """What leaves each column less ``ends`` (n, C), read at each of SHIFTS: (V, n, 4, C).

        The first of the vectors (V, R) is the one that gives ``ends`` with each of n weights (R, C).
        """
        tiles = [Tile(made, shift, -of) for made, of in zip(weights, ends, strict=True) for shift in SHIFTS]
        read = yield from self.ask(tiles, vectors)
        cut = np.repeat(np.abs(ends) > most(self.array), len(SHIFTS), axis=0)
        if cut.any():
            tiles = [Tile(made, shift, wrapped(-2 * of)) for made, of in zip(weights, ends, strict=True) for shift in SHIFTS]
            again = yield from self.ask(tiles, vectors, np.tile(vectors[:1], (len(vectors), 1)))
            read = np.where(cut, again, read)
        return read.reshape(len(vectors), len(weights), len(SHIFTS), self.array.columns)
