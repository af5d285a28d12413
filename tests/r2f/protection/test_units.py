"""What protection costs, against the timing model; what of a scheme it becomes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.int8.network import Network
from accelsim.lowering import lower
from accelsim.timing import Array, network_timing, port_seconds
from r2f.protection.units import Unit, costs, overhead, scheme_of, units
from services.scheme import Port, Scheme


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    return lower(zoo.build("digits_cnn", 10).eval(), images, (0.5,), (0.25,), name="small")


def test_tmr_of_everything_is_200_per_cent(network: Network) -> None:
    whole = units(network, "layers")
    assert [unit.layer for unit in whole] == [index for index, _ in network.convs()]
    for cost in ("cycles", "macs"):
        assert overhead(whole, costs(network, whole, Array(), 16, cost)) == pytest.approx(2)  # type: ignore[arg-type]


def test_ports_cost_their_traffic(network: Network) -> None:
    array, every = Array(), units(network, "sites")
    assert len(every) == 4 * len(units(network, "layers"))
    found = costs(network, every, array, 16, "cycles")
    seconds = network_timing(network, 16, array).forward_s
    for index, layer in network.convs():
        expected = port_seconds(layer, network.shape_of(layer.inputs[0]), array, "weight", batch=16) / seconds
        assert found[Unit(index, "weight")] == pytest.approx(expected)
    with pytest.raises(ValueError, match="ports multiply nothing"):
        costs(network, every, array, 16, "macs")


def test_a_layer_in_tmr_has_no_ports_besides() -> None:
    base = Scheme(codec="direct", protected=(9,), tmr="layer")
    found = scheme_of([Unit(4, "weight"), Unit(2), Unit(2, "output"), Unit(0, "input")], base)
    assert found == Scheme(codec="direct", protected=(2,), ports=(Port(0, "input"), Port(4, "weight")))
