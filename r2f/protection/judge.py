"""How good a protection is, by real inference; what was measured once is read from a file the next time."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.faults import Rates
from accelsim.files import read_lines
from accelsim.int8 import storage
from accelsim.int8.network import Activation, Network, UInt8
from r2f import inprocess
from services.edge_agent.core.answer import margins
from services.scheme import Scheme
from services.trainer.core import evaluation, selection

FILE = "evaluations.jsonl"
Float32 = npt.NDArray[np.float32]


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What one evaluation found."""

    agreement: tuple[float, ...]
    """Images, in per cent, that the device answers as the fault-free network does; a fault seed each."""
    margins: tuple[tuple[int, float], ...] = ()
    """(margin, share of images whose outputs are less than that apart), by rising margin; without ``tmr`` in the scheme."""
    likeness: float | None = None
    """What the device's class probabilities share with the right ones, in per cent, over images and fault seeds; of a Judge
    that was told which are right."""

    @property
    def mean(self) -> float:
        """Over the fault seeds."""
        return statistics.fmean(self.agreement)

    @property
    def std(self) -> float:
        """Over the fault seeds; 0 for a single one."""
        return statistics.stdev(self.agreement) if len(self.agreement) > 1 else 0.0


class _Line(msgspec.Struct):
    key: str
    score: Score


class Judge:
    """Evaluates schemes on some images under some fault seeds. ``count`` is how many had to be run, now or earlier."""

    def __init__(
        self,
        network: Network,
        images: UInt8,
        rates: Rates,
        seeds: tuple[int, ...],
        *,
        batch: int = 16,
        path: str = "auto",
        right: Float32 | None = None,
        cache: Path | None = None,
        watch: Callable[[Score, bool], None] | None = None,
    ) -> None:
        """``images`` (N, H, W, C). ``right``: their class probabilities (N, classes), for the likeness of scores. ``cache``: a
        file that keeps what was measured, made where there is none.

        ``watch`` gets each score, and whether it was read from the cache. Raises ValueError where the file is none of ours.
        """
        self.network = network
        self.images = images
        self.rates = rates
        self.seeds = seeds
        self.batch = batch
        self.path = path
        self._watch = watch
        (truth,) = inprocess.outputs(network, images, Rates(), seeds[:1], batch=batch, path=path)
        self.fault_free: Activation = truth
        self._right = right
        self._labels = truth.reshape(len(truth), -1).argmax(axis=1).astype(np.int64)
        what = [storage.digest(network), hashlib.sha256(images.tobytes()).hexdigest(), rates, seeds, batch]
        if right is not None:
            what.append(hashlib.sha256(right.tobytes()).hexdigest())
        self._base = hashlib.sha256(msgspec.json.encode(what)).hexdigest()
        self._file = cache
        earlier = [] if cache is None else read_lines(cache, _Line, "the search measures anew")
        self._known = {line.key: line.score for line in earlier}
        self._asked: set[str] = set()

    @property
    def count(self) -> int:
        """Different schemes that were asked for since ``start``."""
        return len(self._asked)

    def start(self) -> None:
        """Begin to count anew."""
        self._asked = set()

    def __call__(self, scheme: Scheme) -> Score:
        """The score of a scheme, of which only the protection counts."""
        only = msgspec.structs.replace(
            Scheme(vote=scheme.vote), protected=scheme.protected, ports=scheme.ports, tmr=scheme.tmr, uncertain=scheme.uncertain
        )
        key = hashlib.sha256(self._base.encode() + msgspec.json.encode(only)).hexdigest()
        self._asked.add(key)
        cached = key in self._known
        if not cached:
            self._known[key] = self._measure(only)
            if self._file is not None:
                with self._file.open("ab") as file:
                    file.write(msgspec.json.encode(_Line(key, self._known[key])) + b"\n")
        if self._watch is not None:
            self._watch(self._known[key], cached)
        return self._known[key]

    def _measure(self, scheme: Scheme) -> Score:
        found = inprocess.outputs(
            self.network, self.images, self.rates, self.seeds, scheme=scheme, batch=self.batch, path=self.path
        )  # fmt: skip
        right = tuple(100 * evaluation.count(y, self._labels).top1 / len(y) for y in found)
        apart = () if scheme.tmr is not None else _shares(found)
        return Score(agreement=right, margins=apart, likeness=self._likeness(found))

    def _likeness(self, outputs: list[Activation]) -> float | None:
        """As in ``Score``."""
        if self._right is None:
            return None
        return 100 * float(np.mean([selection.alike(self.network, y, self._right) for y in outputs], dtype=np.float64))


def _shares(outputs: list[Activation]) -> tuple[tuple[int, float], ...]:
    values, counts = np.unique(np.concatenate([margins(y) for y in outputs]), return_counts=True)
    shares = np.cumsum(counts) / counts.sum()
    return tuple((int(value) + 1, float(share)) for value, share in zip(values, shares, strict=True))
