from __future__ import annotations

import numpy as np
import pytest

from accelsim.int8.network import INPUT, Flatten, Network
from services.trainer.core.labels import choose, teach


def network(scale: float) -> Network:
    layer = Flatten(name="flat", inputs=(INPUT,), shape=(1, 1, 3), scale=scale)
    table = np.zeros((3, 256), np.int8)
    return Network(name="made", input_shape=(1, 1, 3), input_scale=scale, input_table=table, layers=(layer,))


def test_a_teacher_gives_its_answer_or_its_probabilities() -> None:
    output = np.array([[[[-128, 127, 0]]], [[[5, 4, 4]]]], np.int8)
    np.testing.assert_array_equal(teach(network(0.1), output, soft=False), [1, 0])
    soft = teach(network(0.1), output, soft=True)
    assert soft.dtype == np.float32
    for row, steps in zip(soft, output.reshape(2, 3), strict=True):
        expected = np.exp(steps.astype(np.float64) * np.float64(np.float32(0.1)))
        np.testing.assert_allclose(row, expected / expected.sum(), rtol=1e-5)


def test_each_source_gives_its_own_labels_and_no_other() -> None:
    device, server, taught = np.array([0]), np.array([1]), np.array([2])
    given = {"device": device, "server": server, "teacher": taught}
    assert choose("device", **given) is device
    assert choose("server", **given) is server
    assert choose("teacher", **given) is taught
    assert choose("teacher-soft", **given) is taught
    for source in ("device", "server", "teacher"):
        with pytest.raises(ValueError, match=f"come from the {source}, which gave none"):
            choose(source, **{**given, source: None})
