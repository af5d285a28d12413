"""Soft errors: which bits flip, as a pure function of a key (architecture.md, "Faults").

A bit error rate (BER) is flipped bits over all bits of a tensor. Positions are ``flat index * width + bit``, width 8
for int8 tensors and 32 for accumulators. Tensors are flat in the order they are stored in: activations and
accumulators NHWC, weights (O, I/groups, R, S). Bit 0 is the least significant.

Every draw comes from a Philox generator whose 128-bit key is a hash of (seed, device, iteration, layer, replica, site),
so a re-run, another process or another order of calls gives the same faults.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1)]
Site = Literal["input", "weight", "accumulator", "output"]


class Rates(msgspec.Struct, frozen=True):
    """Bit error rate at each site, 0 to 1. The paper has one rate for input, weight and output, accumulators off.

    Raises ValueError for a rate outside 0..1.
    """

    input: Rate = 0.0
    weight: Rate = 0.0
    accumulator: Rate = 0.0
    output: Rate = 0.0

    def __post_init__(self) -> None:
        for site in self.__struct_fields__:
            rate = getattr(self, site)
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"rates: {site} is {rate}; a bit error rate lies in 0..1")

    @classmethod
    def uniform(cls, ber: float) -> Rates:
        """The paper's setting: one rate for input features, weights and outputs."""
        return cls(input=ber, weight=ber, output=ber)


@dataclass(frozen=True, slots=True)
class Key:
    """What a draw depends on, besides its site."""

    seed: int
    device: str
    iteration: int
    layer: int
    replica: int

    def generator(self, site: Site, copy: int = 0) -> np.random.Generator:
        """A generator of one site's faults, the same in every process; ``copy`` is of a tensor that is held several times.

        Of the calling thread, and good until that thread's next call: only its state is set, because making a new one
        takes longer than most draws.
        """
        what = (
            int(self.seed),
            self.device,
            int(self.iteration),
            int(self.layer),
            int(self.replica),
            f"{site}.{copy}" if copy else site,
        )
        digest = hashlib.blake2b(repr(what).encode(), digest_size=16).digest()
        if not hasattr(_thread, "philox"):
            _thread.philox = np.random.Philox(key=0)
            _thread.state = _thread.philox.state
            _thread.generator = np.random.Generator(_thread.philox)
        _thread.state["state"]["key"] = np.frombuffer(digest, "<u8")
        _thread.philox.state = _thread.state
        generator: np.random.Generator = _thread.generator
        return generator


_thread = threading.local()
_NONE = np.zeros(0, np.int64)
_NONE.flags.writeable = False


@dataclass(frozen=True, slots=True, eq=False)
class Flips:
    """Sorted distinct bit positions (int64) at each site of one execution of one layer."""

    input: Int64 = field(default_factory=lambda: _NONE)
    weight: Int64 = field(default_factory=lambda: _NONE)
    accumulator: Int64 = field(default_factory=lambda: _NONE)
    output: Int64 = field(default_factory=lambda: _NONE)

    def count(self) -> int:
        """Number of flipped bits over all sites."""
        return len(self.input) + len(self.weight) + len(self.accumulator) + len(self.output)


class FaultModel(Protocol):
    """Where bits flip in one tensor. Write your own: a function of a generator, a size and a rate."""

    def positions(self, generator: np.random.Generator, bits: int, rate: float) -> Int64:
        """Sorted distinct positions (int64) in ``0..bits-1``; about ``bits * rate`` of them."""
        ...


class SoftErrors:
    """Every bit flips independently with probability ``rate``: a binomial count, then uniform distinct positions.

    Drawn as the gaps between flips, which are geometric, so the cost grows with the flips and they come sorted.
    """

    def positions(self, generator: np.random.Generator, bits: int, rate: float) -> Int64:
        """See FaultModel."""
        from accelsim.faults.gaps import place  # Numba is slow to import, and rates are read where nothing is drawn

        # floor(Exp(1) / -log(1 - rate)) is geometric. A gap past the end ends the tensor, however long it is.
        # The limit keeps gaps finite at rates where nothing flips anyway.
        step = min(-1.0 / math.log1p(-rate), 1e300) if rate < 1.0 else 0.0
        parts: list[Int64] = []
        last = -1
        while True:
            expected = (bits - last) * rate
            gaps = generator.standard_exponential(int(expected + 5 * math.sqrt(expected)) + 8)
            part: Int64 = np.empty(gaps.size, np.int64)
            count = place(gaps, step, bits, last, part)
            parts.append(part[:count])
            if count < gaps.size:
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            last = int(part[-1])


@dataclass(frozen=True, slots=True)
class Burst:
    """Runs of ``length`` adjacent bits, as a strike on neighbouring cells gives. ``rate`` stays flipped bits over bits.

    Bursts may overlap (a bit that is hit twice is flipped once) and are cut off at the tensor's end.
    """

    length: int = 4

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"burst: length is {self.length}; it must be 1 or more")

    def positions(self, generator: np.random.Generator, bits: int, rate: float) -> Int64:
        """See FaultModel."""
        starts = distinct(generator, bits, int(generator.binomial(bits, rate / self.length)))
        hit = (starts[:, None] + np.arange(self.length)).reshape(-1)
        return np.unique(hit[hit < bits])


def distinct(generator: np.random.Generator, bits: int, count: int) -> Int64:
    """``count`` sorted distinct integers (int64) of ``0..bits-1``, every subset equally likely. 0 <= count <= bits."""
    if count > bits // 2:
        # Few are left out, so draw those: rejection below would slow down towards count == bits.
        kept = np.ones(bits, np.bool_)
        kept[distinct(generator, bits, bits - count)] = False
        return np.flatnonzero(kept)
    # Draws that repeat are replaced by later ones, which is sampling without replacement.
    chosen = np.unique(generator.integers(0, bits, count)) if count else _NONE
    while len(chosen) < count:
        more = generator.integers(0, bits, count - len(chosen))
        chosen = np.union1d(chosen, more)
    return chosen


def checked(positions: Int64, bits: int) -> Int64:
    """The positions that a fault model gave for a tensor of ``bits``.

    Raises ValueError if they are not a flat int64 array, sorted, distinct and inside the tensor.
    """
    if not isinstance(positions, np.ndarray) or positions.dtype != np.int64 or positions.ndim != 1:
        got = f"{positions.dtype} {positions.shape}" if isinstance(positions, np.ndarray) else type(positions).__name__
        raise ValueError(f"positions must be a flat int64 array, got {got}")
    if len(positions) and not (positions[0] >= 0 and positions[-1] < bits and bool((positions[1:] > positions[:-1]).all())):
        raise ValueError(f"positions are not sorted, distinct and in 0..{bits - 1}")
    return positions


SOFT_ERRORS = SoftErrors()


COPIES = 3
"""Of a tensor that is voted on where it is read."""


def majority(copies: Sequence[Int64]) -> Int64:
    """Positions (sorted, distinct) that are in at least two of three arrays of such: what a bitwise vote leaves of flips."""
    every = np.sort(np.concatenate(copies))
    return np.unique(every[1:][every[1:] == every[:-1]])


def draw(
    rates: Rates,
    key: Key,
    *,
    inputs: int,
    weights: int,
    outputs: int,
    model: FaultModel = SOFT_ERRORS,
    voted: Collection[Site] = (),
) -> Flips:
    """The flips of one execution of one layer.

    ``inputs``, ``weights`` and ``outputs`` are element counts of the batch's input, the weights and the batch's output
    (there are as many accumulators as outputs). At a site that is ``voted``, three copies with faults of their own are
    voted on, bit by bit; the first has the faults that the tensor has without a vote. Raises ValueError if the fault model
    returns positions that are not sorted, distinct and inside the tensor.
    """

    def at(site: Site, bits: int, rate: float) -> Int64:
        if rate == 0.0 or bits == 0:
            return _NONE
        if site in voted:
            return majority([one(site, bits, rate, copy) for copy in range(COPIES)])
        return one(site, bits, rate, 0)

    def one(site: Site, bits: int, rate: float, copy: int) -> Int64:
        positions = model.positions(key.generator(site, copy), bits, rate)
        if model is SOFT_ERRORS:
            return positions
        try:
            return checked(positions, bits)
        except ValueError as error:
            raise ValueError(f"{model}: at site {site}: {error}") from error

    return Flips(
        input=at("input", 8 * inputs, rates.input),
        weight=at("weight", 8 * weights, rates.weight),
        accumulator=at("accumulator", 32 * outputs, rates.accumulator),
        output=at("output", 8 * outputs, rates.output),
    )
