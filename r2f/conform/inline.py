"""What the kit puts into messages and takes out: a tiny network, and tensors inline."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Network, Shape
from r2f.conform.probe import Failed
from services.bus.encoding import view
from services.bus.messages import Tensor


def tiny(shape: Shape) -> Network:
    """A network of three MAC layers, a max pool and a flatten, for images of (H, W, C), 8 by 8 at least; the same each time."""
    import torch  # slow to import, and no other role needs it
    from torch import nn

    from accelsim.lowering import lower

    torch.manual_seed(0)
    height, width, channels = shape
    module = nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * ((height + 1) // 4) * ((width + 1) // 4), 10),
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (16, *shape), np.uint8)
    return lower(module.eval(), images, (0.5,) * channels, (0.5,) * channels, name="conform")


def array(tensor: Tensor, where: str, sent: str) -> npt.NDArray[Any]:
    """A tensor's elements. Raises Failed for one in shared memory."""
    if tensor.data is None:
        raise Failed(sent, f"{where} inline", "a tensor in shared memory; start the program with R2F_SHM_DIR=")
    return view(tensor)


def equal(a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None) -> bool:
    """Whether both are there, of one shape, and the same."""
    return a is not None and b is not None and np.array_equal(a, b)
