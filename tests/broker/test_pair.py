"""Two Mosquittos joined as in compose: what crosses the bridge, and what each account may do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest

from broker import pair
from broker.launch import find_mosquitto, free_port

PASSWORDS = {role: f"{role}-secret" for role in ("device", "server", "watch", "bridge")}
DEVICE, SERVER = "127.0.0.1", "127.0.0.2"

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed: only it can bridge")


def client(host: str, port: int, user: str) -> aiomqtt.Client:
    return aiomqtt.Client(host, port, username=user, password=PASSWORDS[user])


@contextlib.asynccontextmanager
async def brokers(folder: Path) -> AsyncIterator[int]:
    """Both brokers, up and bridged; yields the port that they share, each on a loopback address of its own."""
    port = free_port()
    program = find_mosquitto()
    assert program is not None
    started = []
    configs = pair.write(folder, SERVER, port, PASSWORDS)
    try:
        for path, host in zip(configs, (DEVICE, SERVER), strict=True):
            path.write_text(path.read_text().replace(f"listener {port} 0.0.0.0", f"listener {port} {host}"))
            started.append(await asyncio.create_subprocess_exec(program, "-c", str(path)))
        await crossing(port, "device", "server", "r2f/v1/d/state/probe")
        yield port
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def crossing(port: int, sender: str, receiver: str, topic: str, payload: bytes = b"x") -> None:
    """Publish until it arrives on the other broker, for at most a minute: TimeoutError then."""
    hosts = {"device": DEVICE, "server": SERVER}
    deadline = time.monotonic() + 60
    while True:
        try:
            async with client(hosts[receiver], port, receiver) as there, client(hosts[sender], port, sender) as here:
                await there.subscribe(topic, qos=1)
                while True:
                    await here.publish(topic, payload, qos=1)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            async for message in there.messages:
                                assert message.payload == payload
                                return
                    if time.monotonic() > deadline:
                        raise TimeoutError(topic)
        except aiomqtt.MqttError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


@needs_mosquitto
async def test_bridge_forwards_the_link_planes_each_their_way(tmp_path: Path) -> None:
    async with brokers(tmp_path) as port:
        await crossing(port, "device", "server", "r2f/v1/d/up/layers", b"u" * 127 * 1024)
        await crossing(port, "server", "device", "r2f/v1/d/down/forward")
        await crossing(port, "server", "device", "r2f/v1/d/state/trainer")
        # The server's codec follows what the trainer asks of the device.
        await crossing(port, "server", "server", "r2f/v1/d/down/forward")
        # A server's events are seen on the device's broker by whoever watches there.
        async with client(DEVICE, port, "watch") as watch, client(SERVER, port, "server") as server:
            await watch.subscribe("r2f/v1/d/event/#", qos=1)
            await server.publish("r2f/v1/d/event/backward", b"x", qos=1)
            async with asyncio.timeout(60):
                assert str((await anext(aiter(watch.messages))).topic) == "r2f/v1/d/event/backward"


@needs_mosquitto
async def test_bridge_keeps_each_sides_own_planes_at_home(tmp_path: Path) -> None:
    async with brokers(tmp_path) as port:
        for host, user, plane, other in ((DEVICE, "device", "edge", SERVER), (SERVER, "server", "server", DEVICE)):
            async with (
                client(other, port, "watch") as there,
                client(host, port, "watch") as at_home,
                client(host, port, user) as sender,
            ):
                for watch in (there, at_home):
                    await watch.subscribe("r2f/v1/d/#", qos=1)
                await sender.publish(f"r2f/v1/d/{plane}/voted", b"x", qos=1)
                # What is sent after it and crosses shows that it had its chance.
                await sender.publish("r2f/v1/d/event/compress", b"x", qos=1)
                async with asyncio.timeout(60):
                    seen = await until(at_home, "r2f/v1/d/event/compress")
                    crossed = await until(there, "r2f/v1/d/event/compress")
            assert f"r2f/v1/d/{plane}/voted" in seen
            assert f"r2f/v1/d/{plane}/voted" not in crossed


async def until(watch: aiomqtt.Client, last: str) -> list[str]:
    topics: list[str] = []
    async for message in watch.messages:
        topics.append(str(message.topic))
        if topics[-1] == last:
            break
    return topics


@needs_mosquitto
async def test_only_the_accounts_of_a_side_get_in(tmp_path: Path) -> None:
    async with brokers(tmp_path) as port:
        for host, user in ((SERVER, "device"), (DEVICE, "server"), (DEVICE, "bridge")):
            with pytest.raises(aiomqtt.MqttError):
                async with client(host, port, user):
                    pass


def test_writing_again_replaces_the_files(tmp_path: Path) -> None:
    pair.write(tmp_path, "there", 1883, PASSWORDS)
    device, server = pair.write(tmp_path, "elsewhere", 1884, PASSWORDS)
    assert "address elsewhere:1884" in device.read_text()
    assert "connection" not in server.read_text()


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    for path in pair.write(tmp_path, "there", 1883, PASSWORDS):
        for name in ("mosquitto.conf", "passwords", "acl"):
            assert (path.parent / name).stat().st_mode & 0o077 == 0


def test_missing_password_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["pair", "--server-host", "there", str(tmp_path)])
    for role in PASSWORDS:
        monkeypatch.setenv(f"R2F_{role.upper()}_PASSWORD", "x")
    monkeypatch.delenv("R2F_WATCH_PASSWORD")
    with pytest.raises(SystemExit, match="R2F_WATCH_PASSWORD"):
        pair.main()


def test_a_password_that_would_be_two_lines_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["pair", "--server-host", "there", str(tmp_path)])
    for role in PASSWORDS:
        monkeypatch.setenv(f"R2F_{role.upper()}_PASSWORD", "x")
    monkeypatch.setenv("R2F_BRIDGE_PASSWORD", "x\ntopic # both")
    with pytest.raises(SystemExit, match="R2F_BRIDGE_PASSWORD: no blanks"):
        pair.main()
    assert list(tmp_path.iterdir()) == []
