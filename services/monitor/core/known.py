"""What is known of a device and of its runs, as the page is told it, and how a finished iteration adds to that."""

from __future__ import annotations

from typing import Final

import msgspec

from accelsim.faults import Rates
from services.metric import Metric
from services.scheme import Scheme
from services.trainer.core.ledger import Row

LAYERS: Final = 512
"""Of a run."""


class Service(msgspec.Struct):
    """One service of a device, as its State and Memory have it."""

    online: bool = False
    version: int = 0
    """Of the model that it runs; of agents alone."""
    memory_bytes: int = 0
    """Of its process, which may serve other devices too."""


class Setting(msgspec.Struct):
    """How a device was told to run: ``down/mode``."""

    mode: str
    rates: dict[str, float]
    """Bit error rate a site."""
    seed: int
    codec: str
    vote: str
    executions: int
    """Of each layer; 0 where the referee chooses."""
    exact: bool
    protected: list[int]
    """Layers that run three times and whose vote goes on."""
    ports: int
    """Tensors that are voted on where they are read."""
    tmr: str
    """Of the whole network, in inference; empty for none."""
    known_faults: bool
    """Whether both sides know a map of permanent faults."""


def setting(mode: str, rates: Rates, scheme: Scheme, seed: int, known: bytes) -> Setting:
    """A setting in the words of the page."""
    return Setting(
        mode=mode,
        rates=msgspec.structs.asdict(rates),
        seed=seed,
        codec=scheme.codec,
        vote=scheme.vote,
        executions=scheme.executions,
        exact=scheme.repairs,
        protected=list(scheme.protected[:LAYERS]),
        ports=len(scheme.ports),
        tmr=scheme.tmr or "",
        known_faults=bool(known),
    )


class Layer(msgspec.Struct):
    """One MAC layer, sums over all iterations counted."""

    elements: int = 0
    """Voted on."""
    executions: int = 0
    """Of the last vote."""
    compared: int = 0
    """Of those voted on, in layers that ran more than once."""
    agreed: int = 0
    errors: int = 0
    repaired: int = 0
    unfaithful: int = 0
    """Iterations in which the server had it wrong to the end."""


class Score(msgspec.Struct):
    """An evaluation, as far as it is: the run's metric, a value a fault seed; None for one that was not heard."""

    phase: str
    faults: bool
    values: list[float | None]


class Totals(msgspec.Struct):
    """Sums over the iterations that were counted. Bytes are on the link, but for ``direct``: what it would be without R2F."""

    iterations: int = 0
    up: int = 0
    up_inputs: int = 0
    up_layers: int = 0
    up_repairs: int = 0
    up_direct: int = 0
    up_direct_layers: int = 0
    down: int = 0
    down_direct: int = 0
    elements: int = 0
    mismatched: int = 0
    repaired: int = 0
    wall_s: float = 0.0
    host_s: dict[str, float] = {}
    device_s: dict[str, float] = {}


class Run(msgspec.Struct):
    """One session of a device. The curve is told apart (``Watched.history``): it is long."""

    session: str
    seen: float
    """Unix seconds of its last message."""
    phase: str = ""
    step: int = 0
    steps: int = 0
    iterations: int = 0
    """Of the whole run, 0 where not known."""
    done: int = 0
    """Iterations that ended."""
    loss: float | None = None
    network: str = ""
    batch: int = 0
    """0 where not known."""
    setting: Setting | None = None
    """In training, and until then the newest that has faults."""
    totals: Totals = msgspec.field(default_factory=Totals)
    metric: Metric = "top1"
    """Of the scores."""
    scores: list[Score] = []
    layers: dict[int, Layer] = {}
    model_sha256: str = ""
    """Of a run that was read from its folder."""
    deployed: str = ""
    """Which candidate won, likewise."""
    stopping: str = ""
    """Who has asked for its end, while it goes on."""
    stopped: str = ""
    """By whom and where it was stopped, once it was."""
    from_folder: bool = False
    complete: bool = True
    """False where iterations went by before anybody watched."""


class Device(msgspec.Struct):
    """One device."""

    name: str
    seen: float = 0.0
    services: dict[str, Service] = {}
    samples: dict[str, int] = {}
    setting: Setting | None = None
    """The newest."""
    runs: dict[str, Run] = {}


def tell_layers(run: Run, row: Row) -> None:
    """Adds what a filled row says of its layers to the run's."""
    for one in row.layers:
        if one.index not in run.layers and len(run.layers) >= LAYERS:
            continue
        layer = run.layers.setdefault(one.index, Layer())
        layer.elements, layer.executions = layer.elements + one.voted, one.executions or layer.executions
        layer.errors += one.errors
        if one.executions > 1:
            layer.compared, layer.agreed = layer.compared + one.voted, layer.agreed + one.agreed
        layer.repaired, layer.unfaithful = layer.repaired + one.repaired, layer.unfaithful + (not one.faithful)


def count(totals: Totals, row: Row, model_bytes: int) -> None:
    """Adds a filled row to the totals, as the report adds them up."""
    totals.iterations += 1
    totals.up_inputs += row.uplink_inputs
    totals.up_layers += row.uplink_layers
    totals.up_repairs += row.uplink_repairs
    totals.up += row.uplink_inputs + row.uplink_layers + row.uplink_repairs
    totals.up_direct += row.elements + row.input_bytes
    totals.up_direct_layers += row.elements
    totals.down += row.downlink
    totals.down_direct += row.downlink_full or model_bytes
    totals.elements += row.elements
    totals.mismatched += row.mismatched
    totals.repaired += row.repaired
    totals.wall_s += row.wall_s
    for into, of in ((totals.host_s, row.host_s), (totals.device_s, row.device_s)):
        for stage, seconds in of.items():
            into[stage] = into.get(stage, 0.0) + seconds
