"""What the accelerator is measured against: float torch, ONNX Runtime, PyTorchFI."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from accelsim.int8.network import Activation, Network

Run = Callable[[], object]


def folded(module: nn.Module) -> nn.Module:
    """The float module as one would deploy it: evaluation mode, batch norm folded, channels-last."""
    from torch.fx.experimental.optimization import fuse

    return fuse(module.eval()).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def onnxruntime_int8(network: Network, x: Activation) -> Run | str:
    """A pass of the same network by ONNX Runtime's own operators, or why there is none."""
    try:
        import onnxruntime

        from accelsim.accelerators.onnxruntime import network_model
    except ImportError as error:
        return str(error)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = network_model(network, exact=False)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}
    return lambda: session.run(None, feed)


def pytorchfi(module: nn.Module, x: torch.Tensor, flips: int, weight_flips: int) -> Run | str:
    """A pass with that many injections by PyTorchFI, positions drawn beforehand; or why it cannot run."""
    try:
        from pytorchfi.core import fault_injection
    except ImportError as error:
        return f"{error}; pip install --no-deps pytorchfi"
    logging.disable(logging.INFO)  # it logs every injection; nobody would time it like that
    random = np.random.default_rng(0)
    shape = list(x.shape[1:])

    def injector(model: nn.Module) -> Any:
        return fault_injection(model, len(x), input_shape=shape, layer_types=[nn.Conv2d], use_cuda=False)

    probe = injector(module)

    def spread(count: int, sizes: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.sort(random.choice(len(sizes), count, p=np.array(sizes) / sum(sizes)))

    def places(layers: np.ndarray[Any, np.dtype[np.int64]], shapes: list[tuple[int, ...]]) -> list[list[int]]:
        return [[int(random.integers(shapes[i][d])) for i in layers] for d in range(4)]

    weights = [tuple(probe.get_weights_size(i)) for i in range(probe.get_total_layers())]
    outputs = [(len(x), *probe.get_layer_shape(i)[1:]) for i in range(probe.get_total_layers())]
    at_weights = spread(weight_flips, [int(np.prod(w)) for w in weights])
    at_outputs = spread(flips, [int(np.prod(o)) for o in outputs])
    k, c, h, w = places(at_weights, weights)
    batch, *dims = places(at_outputs, outputs)

    @torch.no_grad()
    def run() -> object:
        broken = injector(module).declare_weight_fi(
            layer_num=at_weights.tolist(), k=k, dim1=c, dim2=h, dim3=w, value=[0.5] * weight_flips
        )
        broken = injector(broken).declare_neuron_fi(
            layer_num=at_outputs.tolist(), batch=batch, dim1=dims[0], dim2=dims[1], dim3=dims[2], value=[0.5] * flips
        )
        return broken(x)

    return run
