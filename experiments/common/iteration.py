"""What else one iteration sends, and the server's part of it: inputs, the backward pass, the model's update."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from accelsim.engine import Engine
from accelsim.int8 import storage
from accelsim.int8.network import Activation, Network
from accelsim.int8.parameters import Parameters, dequantize, quantize
from broker.link import Profile, message_bytes
from services.bus import encoding
from services.bus.messages import EncodedInputs, EncodedModel, Tensor
from services.codec.core import inputs, model
from services.trainer.core import optimiser
from services.trainer.core.replay import replay
from services.trainer.core.task import Sgd

SGD: Final = Sgd()
RATE: Final = 1e-4
CLIP: Final = 5.0
"""The rate of the first feasibility run on ImageNet."""


_WARM: Final = 1
_STEPS: Final = 3


@dataclass(frozen=True, slots=True)
class Update:
    """One step of training: its model on the wire, and the server's time: CPU seconds over the threads it ran on, so that
    other work on the machine does not count, and the least of three warm steps, as caches are shared with it."""

    delta: int
    """Bytes of the delta's body."""
    whole: int
    """Bytes of the new network as stored, uncompressed: what goes down without deltas."""
    backward_s: float
    quantise_s: float
    encode_s: float
    """Of coding the delta, on one thread."""
    decode_s: float
    """Of rebuilding the network from it."""


def midway(network: Network) -> Parameters:
    """Parameters as they are in the middle of training, which quantise to the same int8 weights.

    A network read from int8 has its weights at exact integers, and a small step would move none. Mid-training their
    fractions are spread evenly.
    """
    generator = np.random.default_rng(0)
    parameters = dequantize(network)
    for index, layer in network.convs():
        weight, bias = parameters[index]
        step = layer.weight_scale[:, None, None, None] * generator.uniform(-0.49, 0.49, weight.shape)
        # A weight at the end of int8 would outgrow its scale.
        inside = np.abs(layer.weight.astype(np.int16)) < 127
        parameters[index] = (weight + (step * inside).astype(np.float32), bias)
    return parameters


def update(
    network: Network, engine: Engine, x: Activation, outputs: Mapping[int, Activation], labels: npt.NDArray[np.int64]
) -> Update:
    """One replayed backward pass and SGD step from received ``outputs``, from master weights as they are mid-training."""
    parameters = midway(network)
    base = quantize(network, parameters)
    threads = torch.get_num_threads()
    times: list[tuple[float, float]] = []
    for _ in range(_WARM + _STEPS):
        trained = {index: (weight.copy(), bias.copy()) for index, (weight, bias) in parameters.items()}
        start = time.process_time()
        found = replay(base, x, outputs, labels, engine.fault_free)
        optimiser.step(trained, optimiser.zeros_like(trained), found.gradients, SGD, RATE, CLIP)
        middle = time.process_time()
        new = quantize(base, trained)
        times.append(((middle - start) / threads, (time.process_time() - middle) / threads))
    backward, quantise = (min(column[_WARM:]) for column in zip(*times, strict=True))
    start = time.thread_time()
    delta = model.encode(base, new)
    middle = time.thread_time()
    rebuilt = model.decode(base, delta)
    end = time.thread_time()
    if model.digest(rebuilt) != model.digest(new):
        raise RuntimeError("the delta does not rebuild the model")
    return Update(
        delta=len(delta),
        whole=len(storage.to_bytes(new)),
        backward_s=backward,
        quantise_s=quantise,
        encode_s=middle - start,
        decode_s=end - middle,
    )


def inputs_wire(body: int, count: int, link: Profile | None = None, *, known: bool = False) -> int:
    """Bytes on the wire of one ``up/inputs`` message with ``count`` fresh images in a body of that many bytes.

    ``link`` makes the chunks smaller where it is slow. The images are fresh unless they are ``known``.
    """
    message = EncodedInputs(
        session="0123456789abcdef",
        iteration=1000,
        attempt=0,
        sent_at=1.7e9,
        hashes=tuple(inputs.sample_hash(np.full((1, 1, 1), i, np.uint8)) for i in range(count)),
        labels=Tensor(dtype="int64", shape=(count,), data=bytes(8 * count)),
        shape=(224, 224, 3),
        fresh=bytes(body),
        fresh_of=() if known else tuple(range(count)),
    )
    return message_bytes("up/inputs", len(encoding.encode(message)), link)


def model_wire(body: int, link: Profile | None = None) -> int:
    """Bytes on the wire of one ``down/model`` message with a body of that many bytes, on ``link`` as for inputs."""
    message = EncodedModel(
        session="0123456789abcdef", iteration=1000, sent_at=1.7e9, version=1000, base=999, digest=1 << 63, body=bytes(body)
    )
    return message_bytes("down/model", len(encoding.encode(message)), link)
