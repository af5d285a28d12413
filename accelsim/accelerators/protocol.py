"""What the pipeline asks of a device's accelerator (architecture.md, "Faults" and "Table I")."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol, runtime_checkable

from accelsim.engine import Engine
from accelsim.faults import Rates, Site
from accelsim.int8.network import INPUT, Activation, Conv, Int8, Network
from accelsim.int8.walk import walk


class Accelerator(Protocol):
    """Runs MAC layers, with errors of its own. Swap in real hardware by giving it these methods.

    Activations are C-contiguous int8 (N, H, W, C); what is handed in is not changed, what is handed out is the caller's.
    A repeat of a call gives the same values if the device can. ``accelsim.accelerators.contract`` holds one to all this.
    """

    def load(self, network: Network) -> None:
        """Make ``network`` the one that runs. Before it, the other methods raise RuntimeError."""
        ...

    def run_layer(self, index: int, x: Activation, *, iteration: int = 0, replica: int = 0) -> Activation:
        """Output of one execution of MAC layer ``index`` on x. Raises ValueError for a layer of another type."""
        ...

    def run_replicas(
        self, index: int, x: Activation, *, iteration: int = 0, count: int = 3, first: int = 0
    ) -> list[Activation]:
        """Outputs of ``count`` executions of MAC layer ``index`` on x: ``run_layer``'s with replica ``first`` and on."""
        ...

    def run(self, x: Int8, *, iteration: int = 0) -> list[Activation]:
        """Outputs of all layers for the quantised input x, replica 0; layers that are not MAC layers are exact."""
        ...


Ports = Mapping[int, Collection[Site]]
"""Sites whose tensors are voted on, by layer."""


@runtime_checkable
class PortVoter(Protocol):
    """An accelerator with voters at its ports: it may hold a tensor three times and read what most of the copies say."""

    def vote_at(self, ports: Ports) -> None:
        """From now on vote at these ports of the loaded network and at no others. Raises ValueError for one there is not."""
        ...


@runtime_checkable
class Timed(Protocol):
    """An accelerator with a clock of its own: its time is what it measured, not what an array would take by the model."""

    @property
    def seconds(self) -> float:
        """Seconds that it has computed for, all in all. Grows with every execution."""
        ...


def vote_at(accelerator: Accelerator, ports: Ports) -> None:
    """Have an accelerator vote at these ports. Raises ValueError where it has no voters and is asked for one."""
    if isinstance(accelerator, PortVoter):
        accelerator.vote_at(ports)
    elif ports:
        raise ValueError(
            f"accelerator {type(accelerator).__name__}: it has no voters at its ports (no method vote_at); protect whole layers"
        )


Factory = Callable[[Rates, int, str], Accelerator]
"""Makes an accelerator from the rates of soft errors, the seed and the device's name, which hardware may ignore."""


def layer_by_layer(engine: Engine, x: Int8, mac: Callable[[int, Activation], Activation]) -> list[Activation]:
    """Outputs of all layers for the quantised input x: MAC layers by ``mac(index, x)``, the rest by the exact engine."""
    network = engine.network
    values: dict[int, Activation] = {INPUT: x}
    for index, layer, operands in walk(network, values, keep=True):
        values[index] = mac(index, operands[0]) if isinstance(layer, Conv) else engine.fault_free(index, operands)
    return [values[index] for index in range(len(network.layers))]
