"""What cannot be lowered, and the nearest that can: the texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from accelsim.lowering.errors import LoweringError

if TYPE_CHECKING:
    from accelsim.lowering.builder import Builder

_GENERAL = (
    "convolution, linear, batch norm, pointwise functions, add, multiply, concat, max and mean pooling, channel "
    "shuffles, slices, padding and interpolation can"
)
_NORM = "nn.BatchNorm2d can, its statistics are constants"
_SOFTMAX = "leave it out, the largest output stays the largest"
_RESIZE = "pooling and strided convolution can change the size"
_MATMUL = "nn.Linear and nn.Conv2d can, with a weight that is a parameter"
_ONLY = "only convolutional networks can"
_VALUES = "shapes may decide what forward() does, values of an activation may not"

_NEAREST_MODULES: tuple[tuple[Any, str], ...] = (
    (
        (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm),
        _NORM,
    ),
    ((nn.Softmax, nn.LogSoftmax, nn.Softmax2d), _SOFTMAX),
    (
        (nn.ConvTranspose1d, nn.ConvTranspose3d),
        "nn.ConvTranspose2d can, of one dimension with a height of 1: a kernel (1, K) on x[:, :, None]",
    ),
    ((nn.Conv1d, nn.Conv3d), "nn.Conv2d can"),
    (
        (nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.Embedding, nn.Transformer,
         nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder, nn.TransformerDecoderLayer),
        _ONLY,
    ),
    ((nn.LPPool2d, nn.FractionalMaxPool2d), "nn.AvgPool2d and nn.MaxPool2d can"),
)  # fmt: skip
_NEAREST_CALLS = {
    "softmax": _SOFTMAX,
    "log_softmax": _SOFTMAX,
    "layer_norm": _NORM,
    "group_norm": _NORM,
    "rms_norm": _NORM,
    "local_response_norm": _NORM,
    "normalize": _NORM,
    "norm": _NORM,
    "var": _NORM,
    "std": _NORM,
    "matmul": _MATMUL,
    "bmm": _MATMUL,
    "einsum": _MATMUL,
    "conv1d": "nn.Conv2d can",
    "conv3d": "nn.Conv2d can",
    "grid_sample": _RESIZE,
    "stack": "torch.cat over channels can",
    "max": "max pooling over the image can",
    "amax": "max pooling over the image can",
    "where": "clamps, ReLU and products can",
    "scaled_dot_product_attention": _ONLY,
    "multi_head_attention_forward": _ONLY,
    "embedding": _ONLY,
}
_OF_VALUES = {
    "bool": "a branch on an activation's values",
    "float": "a Python number from an activation's values",
    "int": "a Python number from an activation's values",
    "index": "a Python number from an activation's values",
    "item": "a Python number from an activation's values",
    "tolist": "a list of an activation's values",
    "numpy": "an array of an activation's values",
    "array": "an array of an activation's values",
    **dict.fromkeys(
        (
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "greater",
            "less",
            "isnan",
            "isinf",
            "isfinite",
            "allclose",
            "equal",
            "any",
            "all",
        ),
        "a comparison of an activation's values",
    ),
}


def check_module(builder: Builder, module: nn.Module) -> None:
    """Raises LoweringError for a layer of torch's that has no int8 layer."""
    for kinds, nearest in _NEAREST_MODULES:
        if isinstance(module, kinds):
            raise builder.refuse(type(module).__name__, nearest)


def operator(builder: Builder, name: str) -> LoweringError:
    """The error for a function that has no int8 layer."""
    if name in _OF_VALUES:
        return builder.refuse(_OF_VALUES[name], _VALUES)
    return builder.refuse(f"the operator {name}", _NEAREST_CALLS.get(name, _GENERAL))
