"""Connections that break: pauses, one line a loss, a packet that no broker takes (docs/bus.md, "Patience and limits")."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import pytest
import structlog

from broker.child import environment
from broker.launch import find_mosquitto, free_port
from services.bus import Bus, BusError, connection, encoding
from services.bus.address import broker_address
from services.bus.connection import FIRST_PAUSE_S, LONGEST_PAUSE_S, STRIKES
from services.bus.messages import Ack, Message, Outputs

ADDRESS = broker_address("mqtt://127.0.0.1:1")


def ack(seq: int) -> Ack:
    return Ack(session="s", of="mode", seq=seq, ok=True)


def outputs(nbytes: int) -> Outputs:
    array = np.random.default_rng(nbytes).integers(-128, 128, (nbytes, 1, 1, 1), np.int8)
    return Outputs(session="s", iteration=0, attempt=0, outputs=encoding.inline(array), labels=None)


async def take(bus: Bus, count: int) -> list[Message]:
    return [(await bus.receive(60))[1] for _ in range(count)]


class Script:
    """Connections that fail or last as told: None is a refusal, a number the seconds after which it breaks. Time is made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lasts: float | None) -> None:
        self.lasts = iter(lasts)
        self.now = 0.0
        self.pauses: list[float] = []
        monkeypatch.setattr(connection.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(connection.asyncio, "sleep", self.sleep)
        monkeypatch.setattr(connection.random, "uniform", lambda low, high: (low + high) / 2)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    @contextlib.asynccontextmanager
    async def made(self) -> AsyncIterator[Any]:
        last = next(self.lasts, "end")
        if last == "end":
            raise asyncio.CancelledError
        if last is None:
            raise aiomqtt.MqttError("refused")
        script = self

        class Client:
            @property
            async def messages(self) -> AsyncIterator[None]:
                script.now += last
                raise aiomqtt.MqttError("gone")
                yield

        yield Client()

    async def keep(self, under_way: tuple[str, int] | None = None, patience_s: float = 30.0) -> BaseException:
        async def connected(_: Any) -> None:
            pass

        try:
            await connection.keep(self.made, connected, lambda: None, lambda: under_way, ADDRESS, patience_s)  # type: ignore[arg-type]
        except (BusError, asyncio.CancelledError) as error:
            return error
        raise AssertionError("it ended")


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as logs:
        yield logs


async def test_pauses_grow_and_a_loss_is_said_once(monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    script = Script(monkeypatch, 60.0, *[None] * 25, 60.0, None)
    assert isinstance(await script.keep(patience_s=60), asyncio.CancelledError)
    doubling = [FIRST_PAUSE_S * 2**i for i in range(6)]
    assert script.pauses[:26] == [*doubling, *[LONGEST_PAUSE_S] * 20]
    assert sum(script.pauses[:26]) > 40, "a broker that is away for 40 s is waited for"
    assert script.pauses[26] == FIRST_PAUSE_S, "after a connection that lasted they begin anew"
    assert [line["event"] for line in logged] == ["broker lost", "broker lost"]


async def test_a_broker_that_takes_everybody_in_and_out_again_is_not_stormed(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, *[0.01] * 30)
    await script.keep()
    assert script.now > 40, "30 connections"


async def test_pauses_have_some_chance_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    uniform = connection.random.uniform
    script = Script(monkeypatch, 60.0, *[None] * 20)
    monkeypatch.setattr(connection.random, "uniform", uniform)
    await script.keep(patience_s=100)
    assert len(set(script.pauses)) == len(script.pauses)
    assert all(LONGEST_PAUSE_S / 2 <= pause <= LONGEST_PAUSE_S * 1.5 for pause in script.pauses[6:])


async def test_patience_ends_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = await Script(monkeypatch, 60.0, *[None] * 1000).keep(patience_s=30)
    assert str(error) == "broker mqtt://127.0.0.1:1 is unreachable for 30 s: refused"


async def test_a_broker_that_closes_on_one_packet_again_and_again(monkeypatch: pytest.MonkeyPatch, logged: list[Any]) -> None:
    error = await Script(monkeypatch, *[0.1] * 10).keep(("r2f/v1/d/up/outputs", 100_120))
    assert "closes the connection on a packet of 100120 bytes on r2f/v1/d/up/outputs: raise its packet limit" in str(error)
    assert len(logged) == 1
    small = await Script(monkeypatch, *[0.1] * 10).keep(("r2f/v1/d/up/ack", 70))
    assert "packet of 70 bytes on r2f/v1/d/up/ack: its log may say why" in str(small)


@pytest.mark.parametrize("lasts", [[0.1, None] * 8, [0.1, 3.0] * 8], ids=["killed", "lasts"])
async def test_a_broker_that_is_killed_is_not_blamed_for_a_packet(
    monkeypatch: pytest.MonkeyPatch, lasts: list[float | None]
) -> None:
    script = Script(monkeypatch, *lasts)
    assert isinstance(await script.keep(("r2f/v1/d/up/outputs", 100_120)), asyncio.CancelledError)


# -- Mosquitto with a packet limit ----------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys
import numpy as np
from services.bus import Bus, encoding, service
from services.bus.messages import Outputs
async def serve(bus):
    array = encoding.inline(np.zeros((100, 1, 1, 1000), np.int8))
    await bus.publish("up/outputs", Outputs(session="s", iteration=0, attempt=0, outputs=array, labels=None))
    await bus.flush()
service.run("agent", service.Common(sys.argv[1], "edge-0", log_level="error"), serve)
"""


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """Mosquitto with max_packet_size 65536: its address and its log."""
    mosquitto = find_mosquitto()
    if mosquitto is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    port, log = free_port(), tmp_path / "log"
    (tmp_path / "m.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size 65536\n")
    with log.open("wb") as said:
        broker = await asyncio.create_subprocess_exec(mosquitto, "-v", "-c", str(tmp_path / "m.conf"), stderr=said)
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                break
            await asyncio.sleep(0.02)
    yield f"mqtt://127.0.0.1:{port}", log
    broker.terminate()
    await broker.wait()


async def test_a_packet_over_the_brokers_limit_is_one_error(limited: tuple[str, Path]) -> None:
    """It was 370 connections in 20 s, each repeating everything, and thousands of lines on stderr."""
    url, log = limited
    agent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, url), stderr=asyncio.subprocess.PIPE, env=environment()
    )
    _, said = await asyncio.wait_for(agent.communicate(), 60)
    assert agent.returncode == 1
    assert said.count(b"\n") == 1, said.decode()
    (line,) = said.decode().splitlines()
    assert line.startswith(f"agent: broker {url} closes the connection on a packet of 100")
    assert line.endswith("bytes on r2f/v1/edge-0/up/outputs: raise its packet limit, or set R2F_PACKET_BYTES to that limit")
    assert log.read_text().count("New client connected") == 1 + STRIKES


async def test_a_socket_that_is_closed_before_the_loop_comes_to_it() -> None:
    """The loop said so with a traceback on stderr, on a busy machine."""
    client = connection.Connection("127.0.0.1", 1, arrived=lambda *_: None, acknowledged=lambda _: None)
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    near, far = socket.socketpair()
    client._inside = True  # as when paho has a packet to send in answer to one that arrived
    client._on_socket_register_write(client._client, None, near)
    near.close()
    far.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert complaints == []


async def test_an_end_that_comes_with_an_answer_is_an_end() -> None:
    """``asyncio.wait_for`` forgot it before Python 3.12: a bridge with a wrong token, told so while its bus connected, hung."""
    client = connection.Connection("127.0.0.1", 1, arrived=lambda *_: None, acknowledged=lambda _: None)
    answer = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(client._wait_for(answer, None))
    await asyncio.sleep(0)
    answer.set_result(None)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    late: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(aiomqtt.MqttError, match="timed out"):
        await client._wait_for(late, 0.01)
    assert late.cancelled()


def test_a_connection_that_is_given_up_while_it_is_made_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge with a wrong token ended so at times, with Python's complaint of a pending task behind its one line."""
    made: list[socket.socket] = []
    begun, go_on = threading.Event(), threading.Event()
    real = socket.create_connection

    def slow(*arguments: Any, **options: Any) -> socket.socket:
        begun.set()
        assert go_on.wait(20)
        made.append(real(*arguments, **options))
        return made[-1]

    async def give_up(port: int) -> connection.Connection:
        client = connection.Connection("127.0.0.1", port, arrived=lambda *_: None, acknowledged=lambda _: None)
        entering = asyncio.create_task(client.__aenter__())
        await asyncio.to_thread(begun.wait, 20)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        go_on.set()
        return client

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(socket, "create_connection", slow)
        client = asyncio.run(give_up(server.getsockname()[1]))
    assert client._misc_task is None
    assert [each.fileno() for each in made] == [-1]


async def test_small_messages_around_a_large_one(limited: tuple[str, Path], device: str) -> None:
    async with Bus(limited[0], "trainer", device) as trainer, contextlib.AsyncExitStack() as stack:
        agent = await stack.enter_async_context(Bus(limited[0], "agent", device))
        await trainer.subscribe("up/ack")
        for i in range(20):
            await agent.publish("up/ack", ack(i))
        await agent.publish("up/outputs", outputs(100_000))
        for i in range(20, 40):
            await agent.publish("up/ack", ack(i))
        with pytest.raises(BusError, match="packet of 100"):
            await asyncio.wait_for(agent.flush(), 60)
        taken = await take(trainer, 20)
        assert [m.seq for m in taken if isinstance(m, Ack)] == list(range(20))
        assert trainer.counts["reconnected"] == 0


async def test_the_limit_can_be_said(limited: tuple[str, Path], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2F_PACKET_BYTES", "65536")
    async with Bus(limited[0], "trainer", device) as trainer, Bus(limited[0], "agent", device, arena_bytes=0) as agent:
        await trainer.subscribe("up/outputs")
        sent = [outputs(size) for size in (65_000, 100_000, 1_000_000)]
        for message in sent:
            await agent.publish("up/outputs", message)
        assert await take(trainer, 3) == sent
        assert agent.counts["reconnected"] == 0
    for text in ("1023", "many", "-1", "nan", "inf"):
        monkeypatch.setenv("R2F_PACKET_BYTES", text)
        with pytest.raises(BusError, match="R2F_PACKET_BYTES is"):
            Bus(limited[0], "agent", device)
