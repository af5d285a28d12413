"""``python -m benchmarks.bus``: what the bus costs, beside bare aiomqtt on the same broker and a plain copy in memory.

Two processes: this one sends, the other answers every message with a small one. Small messages one at a time (round trip)
and as fast as they go; tensors of 1 MiB inline, in chunks, and by reference through an arena, each read once by the
receiver. Rounds of all ways alternate, so that a slow spell of the machine hits them all; numbers are medians.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import aiomqtt
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from broker.launch import find_mosquitto, launch
from services.bus import Bus, encoding
from services.bus.messages import Ack, Inputs, Message

DEVICE = "bench"
TENSOR = 1 << 20
WINDOW = 64
Way = Callable[[int], Awaitable[float]]


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; the median is taken")] = 3,
    small: Annotated[int, typer.Option(help="Small messages a round")] = 200,
    tensors: Annotated[int, typer.Option(help="Tensors of 1 MiB a round")] = 24,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here")] = None,
    answer: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure each broker that there is, and print ratios."""
    if answer:
        asyncio.run(_answer(answer))
        return
    kinds = ["mosquitto", "embedded"] if find_mosquitto() else ["embedded"]
    found = {kind: asyncio.run(measure(kind, rounds, small, tensors)) for kind in kinds}
    table = Table("", *kinds, title="The bus, two processes on one host")
    for key, text in ROWS.items():
        table.add_row(
            text, *(f"{found[kind][key]:.2f}" if found[kind][key] < 10 else f"{found[kind][key]:.0f}" for kind in kinds)
        )
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n")


ROWS = {
    "round_trip_us": "round trip of a small message, µs",
    "round_trip_ratio": "  ÷ bare aiomqtt",
    "messages_s": "small messages a second",
    "messages_ratio": "  ÷ bare aiomqtt",
    "inline_mb_s": "1 MiB tensors inline, MB/s",
    "bare_mb_s": "  the same bytes in bare aiomqtt packets, MB/s",
    "arena_mb_s": "1 MiB tensors by reference, MB/s",
    "arena_over_inline": "  ÷ inline",
    "arena_over_copy": "  ÷ a plain copy and one reading",
}


async def measure(kind: str, rounds: int, small: int, tensors: int) -> dict[str, float]:
    """The numbers of one broker, by the keys of ``ROWS``."""
    async with launch(embedded=kind == "embedded") as running:
        url = running.url()
        other = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.bus", "--answer", url), env={**os.environ, "PYTHONPATH": os.getcwd()}
        )
        try:
            async with Bus(url, "sender", DEVICE) as bus, _bare(running.host, running.port) as bare:
                await bus.subscribe("up/ack")
                await bare.subscribe("bare/answer", qos=1)
                ways = _ways(bus, bare)
                await _meet(bus, bare)
                taken: dict[str, list[float]] = {name: [] for name in ways}
                for _ in range(rounds):
                    for name, way in ways.items():
                        count = tensors if name in ("inline", "arena", "bare_large", "copy") else small
                        taken[name].append(await way(count) / count)
        finally:
            other.terminate()
            await other.wait()
    each = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "round_trip_us": each["bus_trip"] * 1e6,
        "round_trip_ratio": each["bus_trip"] / each["bare_trip"],
        "messages_s": 1 / each["bus_burst"],
        "messages_ratio": each["bare_burst"] / each["bus_burst"],
        "inline_mb_s": TENSOR / each["inline"] / 1e6,
        "bare_mb_s": TENSOR / each["bare_large"] / 1e6,
        "arena_mb_s": TENSOR / each["arena"] / 1e6,
        "arena_over_inline": each["inline"] / each["arena"],
        "arena_over_copy": each["copy"] / each["arena"],
    }


def _bare(host: str, port: int) -> aiomqtt.Client:
    """aiomqtt as it comes, but for Nagle's algorithm: with that, a round trip is 40 ms of waiting."""
    client = aiomqtt.Client(host, port, socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)])
    client.pending_calls_threshold = 10 * WINDOW
    return client


def _ways(bus: Bus, bare: aiomqtt.Client) -> dict[str, Way]:
    array = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 1), np.uint8)

    async def over_bus(count: int, window: int, make: Callable[[int], tuple[str, Message]]) -> float:
        start = time.perf_counter()
        answered = 0
        for i in range(count):
            topic, message = make(i)
            await bus.publish(topic, message)
            if i - answered >= window - 1:
                await bus.receive(60)
                answered += 1
        for _ in range(count - answered):
            await bus.receive(60)
        return time.perf_counter() - start

    async def over_bare(count: int, window: int, payload: bytes) -> float:
        start = time.perf_counter()
        answered, tasks = 0, set()
        messages = aiter(bare.messages)
        for i in range(count):
            tasks.add(asyncio.create_task(bare.publish("bare/ask", payload, 1)))
            if i - answered >= window - 1:
                await anext(messages)
                answered += 1
        for _ in range(count - answered):
            await anext(messages)
        await asyncio.gather(*tasks)
        return time.perf_counter() - start

    async def copy(count: int) -> float:
        there = np.empty_like(array)
        start = time.perf_counter()
        for _ in range(count):
            np.copyto(there, array)
            there.max()
        return time.perf_counter() - start

    def ask(i: int) -> tuple[str, Message]:
        return "up/ack", Ack(session="ask", of="mode", seq=i, ok=True)

    def tensor(i: int, *, by_reference: bool) -> tuple[str, Message]:
        images = bus.share(array) if by_reference else encoding.inline(array)
        return "edge/inputs", Inputs(session="s", iteration=i, attempt=0, images=images, labels=None)

    payload = encoding.encode(ask(0)[1])
    return {
        "bus_trip": lambda n: over_bus(n, 1, _on_down(ask)),
        "bare_trip": lambda n: over_bare(n, 1, payload),
        "bus_burst": lambda n: over_bus(n, WINDOW, _on_down(ask)),
        "bare_burst": lambda n: over_bare(n, WINDOW, payload),
        "inline": lambda n: over_bus(n, 8, lambda i: tensor(i, by_reference=False)),
        "arena": lambda n: over_bus(n, 8, lambda i: tensor(i, by_reference=True)),
        # As large as the brokers take, so that it is not the number of packets that is measured.
        "bare_large": lambda n: over_bare(n, 8, array.tobytes()[: TENSOR - 1024]),
        "copy": copy,
    }


def _on_down(make: Callable[[int], tuple[str, Message]]) -> Callable[[int], tuple[str, Message]]:
    """The question goes on another topic than the answer, of the same type."""
    return lambda i: ("r2f/v1/bench-ask/up/ack", make(i)[1])


async def _meet(bus: Bus, bare: aiomqtt.Client) -> None:
    """Wait until the other process answers."""
    while True:
        await bus.publish("r2f/v1/bench-ask/up/ack", Ack(session="ask", of="mode", seq=0, ok=True))
        try:
            await bus.receive(0.2)
            break
        except TimeoutError:
            continue
    await asyncio.sleep(0.5)
    while True:
        try:
            await bus.receive(0.3)
        except TimeoutError:
            return


async def _answer(url: str) -> None:
    """The other process: a small message back for each that comes."""
    host, port = url.removeprefix("mqtt://").split(":")

    async def bus_side() -> None:
        async with Bus(url, "receiver", DEVICE) as bus:
            await bus.subscribe("edge/inputs", "r2f/v1/bench-ask/up/ack")
            async for _, message in bus:
                if isinstance(message, Inputs):
                    seen: np.ndarray[Any, Any] = bus.open(message.images)
                    seen.max()
                    if not bus.release(message.images):
                        raise RuntimeError("a slot was taken back while it was read")
                await bus.publish("up/ack", Ack(session="s", of="mode", seq=0, ok=True))

    async def bare_side() -> None:
        async with _bare(host, int(port)) as client:
            await client.subscribe("bare/ask", qos=1)
            tasks: set[asyncio.Task[None]] = set()
            small = bytes(60)
            async for message in client.messages:
                if isinstance(message.payload, bytes) and len(message.payload) > 1000:
                    np.frombuffer(message.payload, np.uint8).max()
                task = asyncio.create_task(client.publish("bare/answer", small, 1))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    await asyncio.gather(bus_side(), bare_side())


if __name__ == "__main__":
    typer.run(main)
