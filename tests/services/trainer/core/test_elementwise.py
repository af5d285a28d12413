"""The compiled parts of the backward pass against torch's own, on every way that a gradient can lie in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from accelsim.int8.network import MaxPool
from services.trainer.core import elementwise


def dense(n: int, c: int, h: int, w: int) -> Tensor:
    return torch.randn(n, h, w, c).permute(0, 3, 1, 2)


LAYOUTS = {
    "dense": lambda: dense(3, 8, 5, 6),
    "some channels of more": lambda: dense(3, 20, 5, 6)[:, 7:15],
    "one value for all pixels": lambda: torch.randn(3, 8, 1, 1).expand(3, 8, 5, 6),
    "channels apart": lambda: torch.randn(3, 8, 5, 6),
    "a crop": lambda: dense(3, 8, 9, 9)[:, :, 2:7, 1:7],
    "one image": lambda: dense(2, 8, 5, 6)[1:],
    "vectors": lambda: torch.randn(4, 8, 1, 1),
    "a column": lambda: dense(3, 8, 7, 3)[:, :, :, 1:2],
    "many": lambda: dense(8, 24, 60, 61),
}


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything on one thread, and shared out to three however small it is."""
    monkeypatch.setattr(elementwise, "_GRAIN", 16)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=LAYOUTS)
def gradient(request: pytest.FixtureRequest) -> Tensor:
    torch.manual_seed(0)
    made: Tensor = LAYOUTS[request.param]()
    return made


def outputs(gradient: Tensor, dtype: type[np.generic]) -> np.ndarray:
    n, c, h, w = gradient.shape
    info = np.iinfo(dtype)
    y = np.random.default_rng(0).integers(info.min, info.max + 1, (n, h, w, c)).astype(dtype)
    y.reshape(-1)[::7] = 0
    y.flags.writeable = False
    return y


def as_limits(open_until: np.ndarray) -> np.ndarray:
    """Bytes from ``y < open_until`` (C,)."""
    return (open_until - 1).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("owned", [False, True])
def test_the_gate_opens_above_zero_and_below_a_channels_bound(gradient: Tensor, dtype: type, owned: bool) -> None:
    y = outputs(gradient, dtype)
    most = int(np.iinfo(dtype).max)
    ends = np.resize([most + 1, 20, 1, 90, most, 2], gradient.shape[1])
    before = gradient.clone()
    passed, sums = elementwise.gate(gradient, y, as_limits(ends), owned=owned)
    seen = torch.from_numpy(y.astype(np.int32)).permute(0, 3, 1, 2)
    expected = torch.where((seen > 0) & (seen < torch.from_numpy(ends).reshape(-1, 1, 1)), before, 0)
    assert 0 < int((expected != 0).sum()) < expected.numel()
    assert torch.equal(passed, expected)
    near = 1e-6 * float(expected.abs().sum(dim=(0, 2, 3)).max())
    torch.testing.assert_close(sums, expected.double().sum(dim=(0, 2, 3)).float(), rtol=0, atol=near)
    if not owned:
        assert torch.equal(gradient, before), "a gradient that others still read was overwritten"


def test_sums_are_of_each_channel_and_the_same_on_any_number_of_threads(gradient: Tensor) -> None:
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(elementwise.column_sums(gradient))
    finally:
        torch.set_num_threads(threads)
    near = 1e-6 * float(gradient.abs().sum(dim=(0, 2, 3)).max())
    torch.testing.assert_close(found[0], gradient.double().sum(dim=(0, 2, 3)).float(), rtol=0, atol=near)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_planes_hold_every_integer(dtype: type) -> None:
    y = np.arange(256, dtype=np.uint8).view(dtype).reshape(2, 4, 4, 8)
    y.flags.writeable = False
    plane = elementwise.widen(y)
    assert plane.shape == (2, 8, 4, 4)
    assert plane.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(plane.permute(0, 2, 3, 1).numpy(), y.astype(np.float32))


def test_channels_go_back_where_they_came_from(gradient: Tensor) -> None:
    order = np.random.default_rng(0).permutation(30)[: gradient.shape[1]].astype(np.int32)
    n, _, h, w = gradient.shape
    expected = torch.zeros(n, 30, h, w)
    expected[:, torch.from_numpy(order.astype(np.int64))] = gradient
    assert torch.equal(elementwise.move_channels(gradient, order, 30), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "ceil"),
    [
        ((9, 8), (3, 3), (2, 2), (1, 1), (1, 1), False),
        ((8, 8), (3, 3), (2, 2), (0, 0), (1, 1), True),
        ((6, 7), (2, 3), (1, 2), (0, 1), (1, 1), False),
        ((9, 9), (3, 2), (1, 1), (1, 1), (2, 3), False),
        ((5, 5), (2, 2), (3, 3), (0, 0), (1, 1), False),
    ],
)
def test_a_max_pools_gradient_goes_to_the_first_of_the_largest(dtype, size, kernel, stride, padding, dilation, ceil) -> None:
    rng = np.random.default_rng(0)
    # Few values, so that windows have several that are largest; and the least one that there is.
    x = rng.choice(np.array([np.iinfo(dtype).min, 0, 1, np.iinfo(dtype).max], dtype), (4, *size, 6), p=[0.6, 0.2, 0.1, 0.1])
    plane = torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2).requires_grad_()
    y = torch.nn.functional.max_pool2d(plane, kernel, stride, padding, dilation, ceil_mode=ceil)
    gradient = dense(4, 6, *y.shape[2:])
    (expected,) = torch.autograd.grad(y, plane, gradient)
    layer = MaxPool(
        name="pool", inputs=(0,), shape=(y.shape[2], y.shape[3], 6), scale=1.0, signed=dtype is np.int8, kernel=kernel,
        stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip
    torch.testing.assert_close(elementwise.through_max(layer, x, gradient), expected, rtol=1e-6, atol=1e-6)
