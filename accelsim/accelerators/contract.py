"""Whether an accelerator does what ``Accelerator`` says: ``python -m accelsim.accelerators.contract package.module:function``.

A small network runs on it, with convolutions of every kind and layers that it must leave to the processor. Errors are its
own affair, within reason: without soft errors asked for, half of its outputs must be a step away from the exact ones at most,
which finds wrong layouts and scales.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from accelsim.accelerators import Accelerator, Factory, build
from accelsim.engine import reference
from accelsim.faults import Rates
from accelsim.int8.network import INPUT, Activation, Add, Conv, Flatten, Int8, MaxPool, Network, Shape, multiplier
from accelsim.int8.walk import walk


def breaches(factory: Factory, rates: Rates | None = None) -> list[str]:
    """What is not as the contract has it, in sentences; none where it is kept.

    ``rates`` are the soft errors that the accelerator is asked for, none by default.
    """
    device = factory(rates or Rates(), 1, "contract")
    found: list[str] = []
    for clause in (_before_load, _layers, _replicas, _whole, _loads_again):
        try:
            found += clause(device)
        except Exception as error:  # an accelerator is somebody else's code
            found.append(f"{clause.__name__.strip('_').replace('_', ' ')}: {type(error).__name__}: {error}")
    return found


def _before_load(device: Accelerator) -> Iterator[str]:
    _, x = example(8)
    calls: dict[str, Callable[[], object]] = {
        "run": lambda: device.run(x),
        "run_layer": lambda: device.run_layer(0, x),
        "run_replicas": lambda: device.run_replicas(0, x),
    }
    for name, call in calls.items():
        try:
            call()
        except RuntimeError:
            continue
        yield f"{name} before load: expected a RuntimeError that says so"


def _layers(device: Accelerator) -> Iterator[str]:
    network, images = example(8)
    device.load(network)
    near: list[bool] = []
    for index, layer, x in _inputs(network, images):
        what = f"run_layer({index})"
        for batch in (x, x[:1]):
            y = device.run_layer(index, batch)
            yield from _array(what, y, (len(batch), *layer.shape))
        kept, y = x.copy(), device.run_layer(index, x)
        held = y.copy()
        device.run_layer(index, np.ascontiguousarray(x[::-1]))
        if not np.array_equal(x, kept):
            yield f"{what}: its input was changed"
        if not np.array_equal(y, held):
            yield f"{what}: the next call changed what it had returned"
        near += (np.abs(y.astype(np.int16) - reference.layer(layer, [x])) <= 1).reshape(-1).tolist()
    if np.mean(near) < 0.5:
        share = f"only {np.mean(near):.0%} of the outputs are within a step of the exact ones"
        yield f"run_layer: {share}; are they NHWC, and in steps of the layer's scale?"
    other = next(i for i, layer in enumerate(network.layers) if not isinstance(layer, Conv))
    try:
        device.run_layer(other, images)
    except ValueError:
        return
    yield f"run_layer({other}): that is no MAC layer, expected a ValueError that names it"


def _replicas(device: Accelerator) -> Iterator[str]:
    network, images = example(8)
    device.load(network)
    for index, layer, x in _inputs(network, images):
        what = f"run_replicas({index})"
        single = [device.run_layer(index, x, iteration=5, replica=replica) for replica in range(5)]
        again = device.run_layer(index, x, iteration=5)
        for count, first in ((3, 0), (2, 3), (1, 0)):
            ys = device.run_replicas(index, x, iteration=5, count=count, first=first)
            if len(ys) != count:
                yield f"{what}: {len(ys)} outputs for count {count}"
            for y in ys:
                yield from _array(what, y, (len(x), *layer.shape))
            # A device whose errors come as they please has nothing to be held to.
            repeats = np.array_equal(single[0], again)
            if repeats and not all(np.array_equal(y, single[first + r]) for r, y in enumerate(ys)):
                yield f"{what}: count {count}, first {first} are not run_layer's replicas {first} to {first + count - 1}"


def _whole(device: Accelerator) -> Iterator[str]:
    network, images = example(8)
    device.load(network)
    outputs = device.run(images)
    if len(outputs) != len(network.layers):
        yield f"run: {len(outputs)} outputs of {len(network.layers)} layers"
        return
    for index, layer, operands in walk(network, {INPUT: images, **dict(enumerate(outputs))}, keep=True):
        yield from _array(f"run, layer {index}", outputs[index], (len(images), *layer.shape))
        if not isinstance(layer, Conv) and not np.array_equal(outputs[index], reference.layer(layer, operands)):
            yield f"run, layer {index}: a {type(layer).__name__} must be exact on the outputs before it"


def _loads_again(device: Accelerator) -> Iterator[str]:
    for side in (8, 6):
        network, images = example(side)
        device.load(network)
        for index, layer, x in _inputs(network, images):
            yield from _array(f"run_layer({index}) after another load", device.run_layer(index, x), (len(x), *layer.shape))


def _array(what: str, y: object, shape: tuple[int, ...]) -> Iterator[str]:
    if not isinstance(y, np.ndarray):
        yield f"{what}: expected a NumPy array, got {type(y).__name__}"
    elif y.dtype != np.int8 or y.shape != shape:
        yield f"{what}: expected int8 of shape {shape}, got {y.dtype} of shape {y.shape}"
    elif not y.flags.c_contiguous:
        yield f"{what}: expected a C-contiguous array"


def _inputs(network: Network, images: Int8) -> Iterator[tuple[int, Conv, Activation]]:
    """(index, layer, its exact input) of each MAC layer; the inputs are read-only, as they come from the bus."""
    exact = reference.run(network, images)
    for index, layer in network.convs():
        (source,) = layer.inputs
        x = images if source == INPUT else exact[source]
        x.flags.writeable = False
        yield index, layer, x


def example(side: int) -> tuple[Network, Int8]:
    """A network on images of ``side`` x ``side`` x 3 and three of them, quantised."""
    random = np.random.default_rng(side)
    half, quarter = -(-side // 2), -(-side // 4)

    def conv(name: str, source: int, shape: Shape, weight: tuple[int, int, int, int], stride: int = 1, groups: int = 1) -> Conv:
        fan_in, out = weight[1] * weight[2] * weight[3], weight[0]
        scale = np.float32(2.0 ** -np.round(np.log2(64 * np.sqrt(fan_in))))  # outputs spread over the range
        steps = np.full(out, scale, np.float32) * random.choice(np.array([1, 0.5], np.float32), out)
        return Conv(
            name=name, inputs=(source,), shape=shape, scale=1.0, weight=random.integers(-127, 128, weight, np.int8),
            bias=random.integers(-999, 999, out, np.int32), weight_scale=steps, multiplier=multiplier(1.0, steps, 1.0),
            stride=(stride, stride), padding=(weight[2] // 2, weight[3] // 2), groups=groups,
        )  # fmt: skip

    layers = (
        replace(conv("stem", INPUT, (side, side, 8), (8, 3, 3, 3)), low=0),
        conv("depthwise", 0, (half, half, 8), (8, 1, 3, 3), stride=2, groups=8),
        conv("grouped", 1, (half, half, 8), (8, 4, 1, 1), groups=2),
        Add(name="add", inputs=(1, 2), shape=(half, half, 8), scale=1.0, multipliers=(1.0, 1.0)),
        MaxPool(
            name="pool", inputs=(3,), shape=(quarter, quarter, 8), scale=1.0, kernel=(2, 2), stride=(2, 2),
        ),
        Flatten(name="flatten", inputs=(4,), shape=(1, 1, 8 * quarter**2), scale=1.0),
        conv("classes", 5, (1, 1, 5), (5, 8 * quarter**2, 1, 1)),
    )  # fmt: skip
    table = np.tile(np.arange(-128, 128).astype(np.int8), (3, 1))
    network = Network(name="contract", input_shape=(side, side, 3), input_scale=1.0, input_table=table, layers=layers)
    return network, network.quantize_images(random.integers(0, 256, (3, side, side, 3), np.uint8))


def main(spec: str) -> int:
    """Prints what is not as the contract has it; the exit status: 1 where there is anything, or no such accelerator."""
    try:
        found = breaches(build(spec))
    except ValueError as error:
        found = [str(error)]
    print("\n".join(found) or f"{spec} keeps the contract")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 2 else f"usage: {__spec__.name} ACCELERATOR")
