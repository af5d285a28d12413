"""Two Mosquittos joined as in compose: what crosses the bridge, and what each account may do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest
from cryptography.hazmat.primitives import serialization

from broker import certificates, pair
from broker.launch import find_mosquitto, free_port

DEVICE, SERVER = "127.0.0.1", "127.0.0.2"

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed: only it can bridge")


def client(folder: Path, host: str, port: int, name: str) -> aiomqtt.Client:
    home = folder / name
    files = aiomqtt.TLSParameters(str(home / "ca.pem"), str(home / "certificate.pem"), str(home / "key.pem"))
    return aiomqtt.Client(host, port, tls_params=files)


@contextlib.asynccontextmanager
async def brokers(folder: Path) -> AsyncIterator[int]:
    """Both brokers, up and bridged; yields the port that they share, each on a loopback address of its own."""
    port = free_port()
    program = find_mosquitto()
    assert program is not None
    started = []
    configs = pair.write(folder, SERVER, port, {"d": DEVICE})
    try:
        for path, host in zip(configs.values(), (SERVER, DEVICE), strict=True):
            path.write_text(path.read_text().replace(f"listener {port} 0.0.0.0", f"listener {port} {host}"))
            started.append(await asyncio.create_subprocess_exec(program, "-c", str(path)))
        await crossing(folder, port, "d", "server", "r2f/v1/d/state/agent")
        yield port
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def crossing(folder: Path, port: int, sender: str, receiver: str, topic: str, payload: bytes = b"x") -> None:
    """Publish until it arrives on the other broker, for at most a minute: TimeoutError then."""
    hosts = {"d": DEVICE, "server": SERVER}
    deadline = time.monotonic() + 60
    while True:
        try:
            async with (
                client(folder, hosts[receiver], port, receiver) as there,
                client(folder, hosts[sender], port, sender) as here,
            ):
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
        await crossing(tmp_path, port, "d", "server", "r2f/v1/d/up/layers", b"u" * 127 * 1024)
        await crossing(tmp_path, port, "server", "d", "r2f/v1/d/down/forward")
        await crossing(tmp_path, port, "server", "d", "r2f/v1/d/state/trainer")
        # The server's codec follows what the trainer asks of the device.
        await crossing(tmp_path, port, "server", "server", "r2f/v1/d/down/forward")
        # A server's events are seen on the device's broker by whoever watches there.
        async with client(tmp_path, DEVICE, port, "watch") as watch, client(tmp_path, SERVER, port, "server") as server:
            await watch.subscribe("r2f/v1/d/event/#", qos=1)
            await server.publish("r2f/v1/d/event/backward", b"x", qos=1)
            async with asyncio.timeout(60):
                assert str((await anext(aiter(watch.messages))).topic) == "r2f/v1/d/event/backward"


@needs_mosquitto
async def test_bridge_keeps_each_sides_own_planes_at_home(tmp_path: Path) -> None:
    async with brokers(tmp_path) as port:
        for host, user, plane, other in ((DEVICE, "d", "edge", SERVER), (SERVER, "server", "server", DEVICE)):
            async with (
                client(tmp_path, other, port, "watch") as there,
                client(tmp_path, host, port, "watch") as at_home,
                client(tmp_path, host, port, user) as sender,
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


def test_what_is_there_is_kept_and_what_is_called_otherwise_is_renewed(tmp_path: Path) -> None:
    pair.write(tmp_path, "there", 1883, {"d": "here"})
    key, broker = ((tmp_path / name / "key.pem").read_bytes() for name in ("d", "server-broker"))
    configs = pair.write(tmp_path, "elsewhere", 1884, {"d": "here", "e": "beside"})
    assert list(configs) == ["server-broker", "d-broker", "e-broker"]
    assert "address elsewhere:1884" in configs["d-broker"].read_text()
    assert "connection r2f" not in configs["server-broker"].read_text()
    assert (tmp_path / "d" / "key.pem").read_bytes() == key
    assert (tmp_path / "server-broker" / "key.pem").read_bytes() != broker
    (tmp_path / "d" / "certificate.pem").unlink()
    pair.write(tmp_path, "elsewhere", 1884, {"d": "here"})
    assert (tmp_path / "d" / "key.pem").read_bytes() != key


def test_each_bridge_is_its_device_alone(tmp_path: Path) -> None:
    configs = pair.write(tmp_path, "there", 1883, {"d": "here", "e": "beside"})
    for name in "de":
        text = configs[f"{name}-broker"].read_text()
        assert f"bridge_certfile {tmp_path / name / 'certificate.pem'}" in text
        topics = [line for line in text.splitlines() if line.startswith("topic ")]
        assert len(topics) == 4
        assert all(f" r2f/v1/{name}/" in line for line in topics)
        # On a device's own broker there is nobody of another device, and nobody of the server's side.
        assert "user server" not in (tmp_path / f"{name}-broker" / "acl").read_text()
        assert {line for line in (tmp_path / f"{name}-broker" / "acl").read_text().splitlines() if line.startswith("user")} == {
            f"user {name}", "user watch",
        }  # fmt: skip


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    pair.write(tmp_path, "there", 1883, {"d": "here"})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if path.stat().st_mode & 0o077] == []
    assert [path for path in tmp_path.iterdir() if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "d"], "write NAME=HOST"),
        (["--device", "d/e=h"], "write NAME=HOST"),
        (["--device", "d=h\ntopic # both"], "neither an address nor a host's name"),
        (["--device", "server=h"], "server is a server there"),
        (["--device", "d=h", "--port", "0x1"], "no port"),
        (["--device", "d=h", "--memory-mb", "0"], "no number"),
        ([], "--device"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pair", "--server-host", "there", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as caught:
        pair.main()
    assert said in f"{caught.value.code}{capsys.readouterr().err}"


NAMES = ("d", "server", "d-broker", "server-broker")


def fits(folder: Path) -> list[str]:
    ledger = certificates.known(folder)
    return [certificates.misfit(folder / name, ledger[name].valid[-1].serial) for name in NAMES]


def test_a_key_that_a_renewal_was_cut_off_behind_is_made_anew_with_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed anywhere between ledger and certificate: at the next start compose comes up, and with what the ledger has."""
    pair.write(tmp_path, SERVER, 8883, {"d": DEVICE})
    (tmp_path / "d" / "key.pem").write_bytes((tmp_path / "server" / "key.pem").read_bytes())
    for name in ("key.pem", "ca.pem"):
        (tmp_path / "server-broker" / name).unlink()
        pair.write(tmp_path, SERVER, 8883, {"d": DEVICE})
        assert fits(tmp_path) == [""] * 4
    whole = certificates.write_whole

    def cut_off(path: Path, data: bytes, mode: int) -> None:
        if path.parent.name == "d":
            raise KeyboardInterrupt
        whole(path, data, mode=mode)

    monkeypatch.setattr(certificates, "write_whole", cut_off)
    with pytest.raises(KeyboardInterrupt):
        certificates.renew(tmp_path, "d")
    monkeypatch.undo()
    assert certificates.misfit(tmp_path / "d") == "", "the old pair, which still fits"
    assert fits(tmp_path)[0] == "it is not the newest that was issued"
    pair.write(tmp_path, SERVER, 8883, {"d": DEVICE})
    assert fits(tmp_path) == [""] * 4


def test_a_key_with_a_passphrase_is_refused_by_name_and_nobody_is_asked(tmp_path: Path) -> None:
    pair.write(tmp_path, SERVER, 8883, {"d": DEVICE})
    path = tmp_path / "d" / "key.pem"
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked = key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret"))
    path.write_bytes(locked)
    with pytest.raises(ValueError, match=r"d/key\.pem: is encrypted, and a service has nobody to ask"):
        pair.write(tmp_path, SERVER, 8883, {"d": DEVICE})
    assert path.read_bytes() == locked
    path.write_text("no key")
    assert certificates.misfit(tmp_path / "d")
