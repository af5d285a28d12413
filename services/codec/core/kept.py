"""What the device's end keeps of the running iteration, so that any layer that the server has wrong can be corrected."""

from __future__ import annotations

import numpy as np

from accelsim.engine import Engine
from accelsim.faults.permanent import FaultMap
from accelsim.faults.worn import exact
from accelsim.int8.network import INPUT, Activation, Network
from services.codec.core import layers, repair
from services.codec.core.bodies import CodecError


class Kept:
    """Of each layer that the server has not confirmed: the actual output, and the body that was sent of it.

    The vote that a body's increments are against follows from the two. ``nbytes`` is what all of it takes; ``x`` is the
    network's input, int8 (N, H, W, C), ``known`` the permanent faults that the server predicts with.
    """

    def __init__(self, network: Network, path: str, iteration: int, x: Activation, known: FaultMap | None = None) -> None:
        self.network = network
        self.iteration = iteration
        self._path = path
        self._known = known
        self._engine: Engine | None = None
        self._actual: dict[int, Activation] = {INPUT: x}
        self._body: dict[int, bytes] = {}
        self._right_from: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors and bodies that are kept."""
        return sum(y.nbytes for y in self._actual.values()) + sum(len(body) for body in self._body.values())

    def reference(self, index: int, vote: Activation | None) -> Activation | None:
        """What the increments of MAC layer ``index`` are to be against, like its outputs, given its vote.

        That is the vote, until the server has asked for everything from an earlier layer on: then it is just what the server
        predicts, and nothing can be left to correct.
        """
        if vote is not None and self._right_from is not None and index >= self._right_from:
            return self._runs().fault_free(index, [self._input(index, {})])
        return vote

    def keep(self, index: int, actual: Activation, body: bytes) -> None:
        """Remember MAC layer ``index``: its actual output (N, H, W, C) and the body that goes up."""
        self._actual[index] = actual.copy()
        self._body[index] = body

    def correct(self, index: int, digests: bytes | None) -> dict[int, bytes]:
        """Corrections by layer for a request: that layer's, or, without digests, those of all layers from it on.

        Raises CodecError where that layer was not sent yet, or was confirmed already.
        """
        if index not in self._body:
            raise CodecError(f"repair: layer {index} of iteration {self.iteration} is not kept")
        if digests is not None:
            wanted = [index]
        else:
            self._right_from = index
            wanted = [i for i in sorted(self._body) if i >= index]
        corrections = {}
        computed: dict[int, Activation] = {}
        for i in wanted:
            if layers.needs_prediction(self._body[i]):  # else it carried the outputs themselves
                actual = self._actual[i]
                increments = layers.decode(self._body[i], np.zeros_like(actual), actual.shape, actual.dtype)
                vote = np.subtract(actual, increments)
                corrections[i] = repair.correction(self._runs(), i, self._input(i, computed), actual, vote, digests)
                live = self._live(i)
                computed = {j: y for j, y in computed.items() if j in live}
        return corrections

    def confirm(self, index: int) -> None:
        """The server has all layers up to ``index`` right: only what later layers are computed from is kept of them.

        Raises CodecError where that layer is not kept.
        """
        if index not in self._body:
            raise CodecError(f"rebuilt: layer {index} of iteration {self.iteration} is not kept")
        computed: dict[int, Activation] = {}
        live = {i: self._value(i, computed) for i in self._live(index)}
        self._actual = live | {i: y for i, y in self._actual.items() if i > index}
        self._body = {i: body for i, body in self._body.items() if i > index}

    def _live(self, index: int) -> set[int]:
        """The activations up to ``index`` that layers after it read."""
        return {i for layer in self.network.layers[index + 1 :] for i in layer.inputs if i <= index}

    def _input(self, index: int, computed: dict[int, Activation]) -> Activation:
        return self._value(self.network.layers[index].inputs[0], computed)

    def _value(self, index: int, computed: dict[int, Activation]) -> Activation:
        """An actual activation: kept for MAC layers, else computed, as the device does it exactly too."""
        known = self._actual.get(index, computed.get(index))
        if known is not None:
            return known
        operands = [self._value(i, computed) for i in self.network.layers[index].inputs]
        computed[index] = self._runs().fault_free(index, operands)
        return computed[index]

    def _runs(self) -> Engine:
        if self._engine is None:
            self._engine = exact(self.network, self._path, self._known)
        return self._engine
