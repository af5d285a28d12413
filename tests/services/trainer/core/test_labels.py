from __future__ import annotations

import numpy as np
import pytest

from accelsim.int8.network import INPUT, Flatten, Network
from services.trainer.core.labels import choose
from services.trainer.core.loss import Soft
from services.trainer.core.objective import probabilities
from services.trainer.core.task import Recipe, Task


def network(scale: float) -> Network:
    layer = Flatten(name="flat", inputs=(INPUT,), shape=(1, 1, 3), scale=scale)
    table = np.zeros((3, 256), np.int8)
    return Network(name="made", input_shape=(1, 1, 3), input_scale=scale, input_table=table, layers=(layer,))


OUTPUT = np.array([[[[-128, 127, 0]]], [[[5, 4, 4]]]], np.int8)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_probabilities_are_the_softmax_at_a_temperature(temperature: float) -> None:
    soft = probabilities(network(0.1), OUTPUT, temperature)
    assert soft.dtype == np.float32
    for row, steps in zip(soft, OUTPUT.reshape(2, 3), strict=True):
        expected = np.exp(steps.astype(np.float64) * np.float64(np.float32(0.1)) / temperature)
        np.testing.assert_allclose(row, expected / expected.sum(), rtol=1e-5)


def test_each_source_gives_its_own_labels_and_no_other() -> None:
    device, server, teacher = np.array([0, 2]), np.array([1, 1]), (network(0.1), OUTPUT)
    given = {"device": device, "server": server, "teacher": teacher}
    assert choose(Task(labels="device"), network(0.1), **given) is device
    assert choose(Task(labels="server"), network(0.1), **given) is server
    np.testing.assert_array_equal(choose(Task(labels="teacher"), network(0.1), **given), [1, 0])
    soft = choose(Task(labels="teacher-soft", recipe=Recipe(temperature=3.0)), network(0.1), **given)
    assert isinstance(soft, Soft)
    np.testing.assert_array_equal(soft.probabilities, probabilities(*teacher, 3.0))
    assert (soft.temperature, soft.hard) == (3.0, None)
    for source in ("device", "server", "teacher"):
        with pytest.raises(ValueError, match=f"come from the {source}, which gave none"):
            choose(Task(labels=source), network(0.1), **{**given, source: None})


def test_hard_labels_may_be_mixed_in() -> None:
    task = Task(labels="teacher-soft", recipe=Recipe(hard=0.25))
    found = choose(task, network(0.1), device=np.array([0, 2]), server=None, teacher=(network(0.1), OUTPUT))
    assert isinstance(found, Soft)
    assert found.share == 0.25
    np.testing.assert_array_equal(found.hard, [0, 2])
    with pytest.raises(ValueError, match="come from the device, which gave none"):
        choose(task, network(0.1), device=None, server=None, teacher=(network(0.1), OUTPUT))
