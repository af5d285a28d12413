"""What the device's end keeps of the running iteration, so that any layer of it can be corrected."""

from __future__ import annotations

from accelsim.engine import Engine
from accelsim.network import INPUT, Int8, Network, UInt8
from services.codec import repair
from services.codec.layers import CodecError


class Kept:
    """Of each layer the actual output, and what its increments were against: two tensors, for the length of an iteration."""

    def __init__(self, network: Network, path: str, iteration: int, attempt: int, images: UInt8) -> None:
        self.network = network
        self.iteration = iteration
        self.attempt = attempt
        self._path = path
        self._engine: Engine | None = None
        self._actual: dict[int, Int8] = {INPUT: network.quantize_images(images)}
        self._vote: dict[int, Int8 | None] = {}
        self._golden_from: int | None = None

    def keep(self, index: int, actual: Int8, vote: Int8 | None) -> Int8 | None:
        """Remember MAC layer ``index``, int8 (N, H, W, C); returns what its increments are to be against.

        That is the vote, until the server has asked for everything from an earlier layer on: then it is the fault-free
        output itself, and nothing can be left to correct.
        """
        self._actual[index] = actual.copy()
        if vote is not None and self._golden_from is not None and index >= self._golden_from:
            vote = self._runs().golden(index, [self._input(index)])
        self._vote[index] = None if vote is None else vote.copy()
        return vote

    def correct(self, index: int, digests: bytes | None) -> dict[int, bytes]:
        """Corrections by layer for a request: that layer's, or, without digests, those of all layers from it on.

        Raises CodecError where there is no such layer yet.
        """
        if index not in self._vote:
            raise CodecError(f"repair: layer {index} of iteration {self.iteration} was not sent")
        if digests is not None:
            wanted = [index]
        else:
            self._golden_from = index
            wanted = [i for i in sorted(self._vote) if i >= index]
        corrections = {}
        for i in wanted:
            vote = self._vote[i]
            if vote is not None:
                corrections[i] = repair.correction(self._runs(), i, self._input(i), self._actual[i], vote, digests)
        return corrections

    def _input(self, index: int) -> Int8:
        return self._value(self.network.layers[index].inputs[0])

    def _value(self, index: int) -> Int8:
        """An actual activation: kept for MAC layers, recomputed once for the others."""
        if index not in self._actual:
            operands = [self._value(i) for i in self.network.layers[index].inputs]
            self._actual[index] = self._runs().golden(index, operands)
        return self._actual[index]

    def _runs(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self.network, self._path)
        return self._engine
