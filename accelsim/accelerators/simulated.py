"""The simulated accelerator: the exact engine, with faults drawn by a key (architecture.md, "Faults")."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from accelsim.accelerators.protocol import Ports
from accelsim.engine import Engine
from accelsim.faults import SOFT_ERRORS, FaultModel, Flips, Key, Rates, draw
from accelsim.faults.permanent import FaultMap
from accelsim.faults.worn import exact
from accelsim.int8.network import Activation, Int8, Network


class Simulated:
    """An accelerator with soft errors (architecture.md, "Faults"), keyed by (seed, device, iteration, layer, replica, site).

    ``rates`` and ``seed`` may be set between runs. ``path`` is the engine's. ``permanent`` are worn-out elements of its
    array (``accelsim.faults.permanent``): every execution has these faults, the soft errors come on top.
    """

    def __init__(
        self,
        rates: Rates | None = None,
        seed: int = 0,
        device: str = "device",
        path: str = "auto",
        fault_model: FaultModel | None = None,
        permanent: FaultMap | None = None,
    ) -> None:
        self.rates = Rates() if rates is None else rates
        self.seed = seed
        self.device = device
        self.path = path
        self.fault_model: FaultModel = SOFT_ERRORS if fault_model is None else fault_model
        self.permanent = permanent
        self.ports: Ports = {}
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine of the loaded network; raises RuntimeError if none is loaded."""
        if self._engine is None:
            raise RuntimeError("accelerator: no network is loaded; call load(network) first")
        return self._engine

    def load(self, network: Network) -> None:
        """See Accelerator."""
        self._engine = exact(network, self.path, self.permanent)

    def vote_at(self, ports: Ports) -> None:
        """See PortVoter. Soft errors in the accumulators cannot be voted on."""
        for index, sites in ports.items():
            layer = self.engine.conv(index)
            if "accumulator" in sites:
                raise ValueError(f"layer {index} ({layer.name}): accumulators are in the array; no port could vote on them")
        self.ports = ports

    def flips(self, index: int, shape: tuple[int, ...], *, iteration: int, replica: int) -> Flips:
        """The soft errors of one execution of MAC layer ``index`` on an input of ``shape`` (N, H, W, C)."""
        layer = self.engine.conv(index)
        key = Key(self.seed, self.device, iteration, index, replica)
        voted = self.ports.get(index, ())
        inputs, outputs = math.prod(shape), shape[0] * math.prod(layer.shape)
        return draw(
            self.rates, key, inputs=inputs, weights=layer.weight.size, outputs=outputs, model=self.fault_model, voted=voted
        )

    def run_layer(self, index: int, x: Activation, *, iteration: int = 0, replica: int = 0) -> Activation:
        """See Accelerator."""
        flips = self.flips(index, x.shape, iteration=iteration, replica=replica)
        return self.engine.replicas(index, x, [flips])[0]

    def run_replicas(
        self, index: int, x: Activation, *, iteration: int = 0, count: int = 3, first: int = 0
    ) -> list[Activation]:
        """See Accelerator."""
        flips = [self.flips(index, x.shape, iteration=iteration, replica=r) for r in range(first, first + count)]
        return self.engine.replicas(index, x, flips)

    def run(self, x: Int8, *, iteration: int = 0) -> list[Activation]:
        """See Accelerator."""
        return self.engine.run(x, lambda index: self._flips_of(index, len(x), iteration, 1))

    def run_chained(
        self, x: Int8, each: Callable[[int, Sequence[Activation], int], None], *, iteration: int = 0, count: int = 3
    ) -> list[Activation]:
        """``run``, with ``count`` replicas of every MAC layer on the actual input that it saw (architecture.md, "The link").

        ``each(index, replicas, first)`` gets them for some images, ``first`` and on, as soon as they are computed, from
        any thread.
        """
        return self.engine.run(x, lambda index: self._flips_of(index, len(x), iteration, count), each)

    def _flips_of(self, index: int, images: int, iteration: int, count: int) -> list[Flips]:
        shape = self.engine.network.shape_of(self.engine.conv(index).inputs[0])
        return [self.flips(index, (images, *shape), iteration=iteration, replica=r) for r in range(count)]
