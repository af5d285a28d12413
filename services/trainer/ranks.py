"""The trainer's replay on several processes, by torch.distributed: the same gradients, to the bit, as on one.

Rank 0 is the trainer. It cuts each batch into the recipe's chunks, keeps some and sends the others out; each rank replays its
chunks and sends back what each came to; rank 0 adds all of them up in the order of the chunks (``core.parts``). Nobody adds
anything up on the way, so neither the number of ranks nor who is first is in the result. All ranks need the same kind of
processor and as many threads, as any two machines that are to give the same bits.

``python -m services.trainer.ranks --rank 1 --ranks 4 --meet HOST:PORT`` is one of the others. Whoever notices that another is
gone ends by SIGTERM: who watches them starts them again, they meet anew, and the run goes on from its checkpoint.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Final

import numpy as np
import structlog
import torch
import torch.distributed as dist
import typer

from accelsim.engine import Engine
from accelsim.int8.network import Activation, Network
from services import logs, memory
from services.bus import service
from services.trainer.core import parts, shipping
from services.trainer.core.loss import Labels
from services.trainer.core.parts import Replaying
from services.trainer.core.replay import Recompute, Replay, replay
from services.trainer.core.shipping import Part

log = structlog.get_logger()

MEETING_S: Final = 120
"""How long ranks wait for one another at first."""
ANSWER_S: Final = 86400 * 7
"""How long a rank waits for work: a device may be away for days. One that dies is noticed by its connection."""
LINGER_S: Final = 3.0
"""How long one that is not needed any more stays: whoever watches it ends it first, and does not start it again."""
LONGEST: Final = 1 << 33
"""Bytes of a message between ranks; more is nothing that a trainer sends."""

Meet = Annotated[
    str, typer.Option(help="HOST:PORT of rank 0, where ranks meet. It asks for no password: on a network of your own alone.")
]
RanksOption = Annotated[int, typer.Option("--ranks", min=1, max=1024, help="Processes that share the replay.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the backward pass; the same number gives the same bits.")]


class Gone(service.StartOver):
    """Another rank is not there any more."""


class Ranks:
    """The other processes, as rank 0 sees them."""

    def __init__(self, ranks: int, chunks: int) -> None:
        self.ranks = ranks
        self.chunks = chunks
        self._known: list[Network | None] = [None] * ranks
        """The network that each rank has."""
        self._turn = threading.Lock()

    def replay(
        self, network: Network, x: Activation, outputs: Mapping[int, Activation], labels: Labels, recompute: Recompute
    ) -> Replay:
        """A batch's replay in chunks, shared by all ranks: what ``parts.chunked`` gives. Raises Gone beside what it raises."""
        cut = [Part(*one) for one in parts.cut(x, outputs, labels, self.chunks)]
        shares = [{i: cut[i] for i in range(len(cut)) if i * self.ranks // len(cut) == rank} for rank in range(self.ranks)]
        with self._turn:
            for rank in range(1, self.ranks):
                known = self._known[rank] is network
                _send(rank, shipping.asked(None if known else network, shares[rank]))
                self._known[rank] = network
            found = {i: replay(network, *part, recompute) for i, part in shares[0].items()}
            for rank in range(1, self.ranks):
                found |= shipping.came(_receive(rank))
        return parts.combined([(len(part.x), found[i]) for i, part in enumerate(cut)])


@contextmanager
def sharing(ranks: int, chunks: int, meet: str) -> Iterator[Replaying | None]:
    """A replay that this process, rank 0, shares with the others, for the block; None where it is alone.

    Raises ValueError where some would have nothing to do, or do not come.
    """
    if ranks == 1:
        yield None
        return
    if ranks > chunks:
        raise ValueError(f"{ranks} ranks for batches in {chunks} chunks: {ranks - chunks} would idle; raise --chunks")
    with _met(0, ranks, meet):
        company = Ranks(ranks, chunks)
        yield company.replay
        for rank in range(1, ranks):
            _send(rank, b"")  # nothing more


@contextmanager
def _met(rank: int, ranks: int, meet: str) -> Iterator[None]:
    host, colon, port = meet.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"--meet {meet!r}: HOST:PORT of rank 0")
    wait = datetime.timedelta(seconds=MEETING_S)
    try:
        store = _store(rank, ranks, host, int(port), wait)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=wait)
    except RuntimeError as error:  # torch's, of the network
        raise ValueError(f"rank {rank} of {ranks} did not meet the others at {meet} in {MEETING_S} s: {error}") from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def _store(rank: int, ranks: int, host: str, port: int, wait: datetime.timedelta) -> Any:
    """Where the ranks tell one another their addresses; rank 0 has it."""
    while True:
        store = dist.TCPStore(host, port, ranks, rank == 0, wait, wait_for_workers=False)  # type: ignore[attr-defined]
        if store.add(f"rank {rank}", 1) == 1:
            return store
        # A predecessor of this process met the others here. Rank 0 has yet to notice that it is gone, and then starts over.
        with suppress(RuntimeError):
            while True:
                store.check(["rank 0"])
                time.sleep(0.2)


def _send(rank: int, data: bytes) -> None:
    with _there(rank):
        _await(dist.isend(torch.tensor([len(data)]), rank))
        if data:
            _await(dist.isend(torch.from_numpy(np.frombuffer(data, np.uint8).copy()), rank))


def _receive(rank: int) -> bytes:
    length = torch.zeros(1, dtype=torch.int64)
    with _there(rank):
        _await(dist.irecv(length, rank))
        if not 0 <= int(length) <= LONGEST:
            raise Gone(f"rank {rank} announces {int(length)} bytes; {LONGEST} are the most")
        data = torch.empty(int(length), dtype=torch.uint8)
        if len(data):
            _await(dist.irecv(data, rank))
    return data.numpy().tobytes()


def _await(work: dist.Work | None) -> None:
    """Until a message has gone or come. A rank takes its time: it may be computing, and the trainer waits for devices."""
    assert work is not None  # it would be of a rank outside the group
    work.wait(datetime.timedelta(seconds=ANSWER_S))


@contextmanager
def _there(rank: int) -> Iterator[None]:
    """Raises Gone where torch says that the connection to a rank broke."""
    try:
        yield
    except Gone:
        raise
    except RuntimeError as error:
        raise Gone(f"rank {rank} is gone: {error}") from error


def work(path: str) -> None:
    """Replay what rank 0 sends until it sends nothing more. Raises Gone where it is not there any more."""
    network: Network | None = None
    engine: Engine | None = None
    while data := _receive(0):
        fresh, share = shipping.what(data)
        if fresh is not None:
            network, engine = fresh, Engine(fresh, path)
        if network is None or engine is None:
            raise ValueError("rank 0 sent a part of a batch before any network")
        _send(0, shipping.answered({i: replay(network, *part, engine.fault_free) for i, part in share.items()}))


def main(
    rank: Annotated[int, typer.Option(min=1, help="This one's number; 0 is the trainer.")],
    ranks: RanksOption,
    meet: Meet,
    threads: Threads = 2,
    path: Annotated[str, typer.Option(help="Engine path: auto, portable, vnni, cuda.")] = "auto",
    json_logs: service.JsonLogs = None,
    log_level: service.LogLevel = "info",
) -> None:
    """One of several processes that share the trainer's replay; ends when the trainer is done."""
    if rank >= ranks:
        raise typer.BadParameter(f"{rank} of {ranks} ranks, which count from 0", param_hint="--rank")
    logs.configure(json_logs, log_level)
    memory.keep_memory()
    torch.set_num_threads(threads)
    try:
        with _met(rank, ranks, meet):
            work(path)
        time.sleep(LINGER_S)
    except Gone as error:
        log.warning("starting over", reason=str(error))
        service.end_by_sigterm()
    except (ValueError, OSError) as error:
        service.fail(f"trainer-rank-{rank}", error)


if __name__ == "__main__":
    typer.run(main)
