"""ONNX Runtime as an accelerator: a device that we did not write, behind the same protocol (section IV.B).

Each MAC layer is a one-layer model (a ``QLinearConv`` and its bounds). ONNX Runtime multiplies the scales in an order of
its own, so that some outputs differ from ours by a step: to the rest of the pipeline these are computing errors like
any other, and travel as increments. Soft errors can be added around it: flips of inputs, weights and outputs are those
that ``accelsim.accelerators.Simulated`` would draw. Its accumulators are out of reach.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from accelsim.accelerators.protocol import layer_by_layer
from accelsim.engine import Engine, reference
from accelsim.faults import SOFT_ERRORS, FaultModel, Flips, Key, Rates, draw
from accelsim.int8.network import Activation, Int8, Network

try:
    import onnxruntime

    from accelsim.accelerators.onnx_models import layer_model, network_model
except ImportError as error:  # an optional dependency
    raise ImportError(f"{error}; ONNX Runtime is optional: pip install 'r2f[onnx]'") from error

__all__ = ["OnnxAccelerator", "layer_model", "network_model"]


class OnnxAccelerator:
    """ONNX Runtime on this machine's CPU, with soft errors around it if ``rates`` asks for them.

    ``rates`` and ``seed`` may be set between runs. Raises ValueError for a rate of accumulator flips.
    """

    def __init__(
        self,
        rates: Rates | None = None,
        seed: int = 0,
        device: str = "device",
        fault_model: FaultModel | None = None,
    ) -> None:
        self.rates = Rates() if rates is None else rates
        self.seed = seed
        self.device = device
        self.fault_model: FaultModel = SOFT_ERRORS if fault_model is None else fault_model
        self._engine: Engine | None = None
        self._sessions: dict[tuple[int, bool], Any] = {}
        self._whole: Any = None

    @property
    def engine(self) -> Engine:
        """The exact engine of the loaded network, for the layers that are not the accelerator's."""
        if self._engine is None:
            raise RuntimeError("accelerator: no network is loaded; call load(network) first")
        return self._engine

    def load(self, network: Network) -> None:
        """See ``accelsim.accelerators.Accelerator``. Models are built when a layer first runs."""
        self._engine = Engine(network)
        self._sessions = {}
        self._whole = None

    def run_layer(self, index: int, x: Activation, *, iteration: int = 0, replica: int = 0) -> Activation:
        """See ``accelsim.accelerators.Accelerator``."""
        layer = self.engine.conv(index)
        flips = self._flips(index, x.shape, iteration, replica)
        varied = flips.weight.size > 0
        feed = {"x": _nchw(reference.flip(x, flips.input))}
        if varied:
            feed["weight"] = reference.flip(layer.weight, flips.weight)
        if (index, varied) not in self._sessions:
            self._sessions[index, varied] = _session(layer_model(self.engine.network, index, weight_is_input=varied))
        (y,) = self._sessions[index, varied].run(None, feed)
        return reference.flip(_nhwc(y), flips.output)

    def run_replicas(
        self, index: int, x: Activation, *, iteration: int = 0, count: int = 3, first: int = 0
    ) -> list[Activation]:
        """See ``accelsim.accelerators.Accelerator``; replicas differ where soft errors are asked for, else not."""
        replicas = range(first, first + count)
        if self.rates == Rates():
            return [self.run_layer(index, x, iteration=iteration)] * count
        return [self.run_layer(index, x, iteration=iteration, replica=replica) for replica in replicas]

    def run(self, x: Int8, *, iteration: int = 0) -> list[Activation]:
        """See ``accelsim.accelerators.Accelerator``; without soft errors the network runs whole, as one model."""
        if self.rates == Rates():
            if self._whole is None:
                self._whole = _session(network_model(self.engine.network, every_layer=True))
            return [_nhwc(y) for y in self._whole.run(None, {"x": _nchw(x)})]
        return layer_by_layer(self.engine, x, lambda index, operand: self.run_layer(index, operand, iteration=iteration))

    def _flips(self, index: int, shape: tuple[int, ...], iteration: int, replica: int) -> Flips:
        if self.rates.accumulator:
            raise ValueError("ONNX Runtime's accumulators cannot be reached: set the rate of accumulator flips to 0")
        layer = self.engine.conv(index)
        key = Key(self.seed, self.device, iteration, index, replica)
        inputs, outputs = int(np.prod(shape)), shape[0] * int(np.prod(layer.shape))
        return draw(self.rates, key, inputs=inputs, weights=layer.weight.size, outputs=outputs, model=self.fault_model)


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    # Threads that wait must not take the cores from the other services of a device.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _nchw(x: Activation) -> Activation:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _nhwc(y: Activation) -> Activation:
    return np.ascontiguousarray(y.transpose(0, 2, 3, 1))
