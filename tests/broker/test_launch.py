"""Starting a broker: accounts, TLS, what goes wrong, and that it never outlives its parent."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paho.mqtt.client import topic_matches_sub

from broker import accounts, child, config, ending
from broker import launch as launching
from broker.accounts import Account
from broker.config import Bridge, Tls
from broker.launch import BrokerError, Running, find_mosquitto, launch
from services.bus import Bus, BusError
from services.bus import Tls as BusTls
from services.bus.address import broker_address
from services.bus.messages import Progress

ROOT = Path(__file__).resolve().parents[2]
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
KINDS = [
    pytest.param(
        False, id="mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
    ),
    pytest.param(True, id="embedded"),
]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_passwords_are_mosquittos() -> None:
    hashed = accounts.hash_password("secret", bytes(12))
    # As `mosquitto_passwd` 2.0 writes it: PBKDF2-HMAC-SHA512, 101 rounds.
    assert hashed.startswith("$7$101$AAAAAAAAAAAAAAAA$")
    assert accounts.hash_password("secret") != accounts.hash_password("secret")


def test_accounts_are_read_as_they_are_written(tmp_path: Path) -> None:
    made = [*accounts.make_accounts(), Account("device", "pump", "pw", "edge-7")]
    accounts.write_accounts(tmp_path / "accounts", made)
    assert accounts.read_accounts(tmp_path / "accounts") == made
    assert (tmp_path / "accounts").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        accounts.write_accounts(tmp_path / "accounts", made)
    for text, message in (
        ("god me pw\n", "accounts:1"),
        ("# none\n", "no account"),
        ("\ndevice a\n", "accounts:2"),
        ("device a:b c\n", "accounts:1"),
        ("device a b #\ndevice a b c/d\n", "accounts:2: 'c/d' cannot be a topic level"),
    ):
        (tmp_path / "accounts").write_text(text)
        with pytest.raises(ValueError, match=message):
            accounts.read_accounts(tmp_path / "accounts")


def test_a_role_may_do_what_the_table_says_and_no_more() -> None:
    account = Account("device", "pump", "pw", "edge-7")
    writes, reads = (accounts.patterns(account, table["device"]) for table in (accounts.WRITES, accounts.READS))

    def may(patterns: list[str], topic: str) -> bool:
        return any(topic_matches_sub(pattern, topic) for pattern in patterns)

    assert may(writes, "r2f/v1/edge-7/up/layers")
    assert may(writes, "r2f/v1/edge-7/down/flow")
    assert not may(writes, "r2f/v1/edge-8/up/layers")
    assert not may(writes, "r2f/v1/edge-7/down/model")
    assert not may(writes, "r2f/v1/edge-7/server/model")
    assert may(writes, "r2f/v1/edge-7/state/agent")
    assert not may(writes, "r2f/v1/edge-7/state/trainer")
    assert may(reads, "r2f/v1/edge-7/down/model")
    assert not may(reads, "r2f/v1/edge-7/server/model")
    assert "topic readwrite r2f/v1/edge-7/edge/#" in accounts.acl([account])
    assert "topic read r2f/v1/edge-7/down/#" in accounts.acl([account])


def test_the_bridge_forwards_the_links_planes_and_no_other() -> None:
    lines = config.bridge_lines(Bridge("server", 1883, "edge-7"))
    assert [line for line in lines if line.startswith("topic")] == [
        "topic r2f/v1/edge-7/up/# out 1",
        "topic r2f/v1/edge-7/down/# in 1",
        "topic r2f/v1/edge-7/state/# both 1",
        "topic r2f/v1/edge-7/event/# both 1",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "can be reached from outside: give it --identity or --accounts"),
        (["--plaintext"], "can be reached from outside: give it --identity or --accounts"),
        (["--accounts", "accounts"], "can be read on the way; use certificates (r2f provision), or say --plaintext"),
        (["--embedded"], "only mosquitto may listen on 0.0.0.0, where others reach it, the embedded broker may not; leave out"),
        (["--embedded", "--host", "127.0.0.1", "--accounts", "accounts"], "only mosquitto keeps accounts and certificates"),
        (["--host", "127.0.0.1", "--bridge-to", "192.0.2.7:1883"], "a bridge to 192.0.2.7 without TLS can be read on the way"),
    ],
)  # fmt: skip
def test_what_others_could_reach_or_read_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    if find_mosquitto() is None and "--embedded" not in arguments:
        pytest.skip("mosquitto is not installed")
    command = [*child.python("broker"), "--host", "0.0.0.0", "--port", "0", *arguments]
    process = subprocess.run(
        command, cwd=tmp_path, env=child.environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 1
    assert said in process.stderr.splitlines()[-1]


def test_the_command_line_makes_accounts_where_there_are_none(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "broker", "--port", "0", "--accounts", str(tmp_path / "accounts")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        process.terminate()
    made = accounts.read_accounts(tmp_path / "accounts")
    assert [a.role for a in made] == ["device", "server", "watch"]
    assert all(a.password not in url for a in made)


@pytest.mark.parametrize("embedded", KINDS)
async def test_a_port_that_is_taken_is_one_clear_error(embedded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "LETTING_GO_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"listen on 127.0.0.1:{port}: Address already in use"):
            async with launch(port, embedded=embedded):
                pass


def test_a_free_port_is_none_that_connections_are_given() -> None:
    """Else one has it when its broker is started again: a service that looks for the broker may be given the very port."""
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not given.exists():
        pytest.skip("says what connections are given on Linux alone")
    low, high = map(int, given.read_text().split())
    found = {launching.free_port() for _ in range(50)}
    assert len(found) > 40
    if low > launching.PORTS.start:
        assert not any(low <= port <= high for port in found)


def test_where_connections_are_given_all_ports_any_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_unasked", lambda: range(20000, 20000))
    assert launching.free_port() > 0


@needs_mosquitto
@pytest.mark.parametrize(("kills", "port"), [(2, 0), (2, None), (5, 0)])
async def test_a_broker_that_is_killed_before_it_listens_is_started_again(
    kills: int, port: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whom, it does not know; one that is killed each time is one clear error."""
    shy = tmp_path / "mosquitto"
    shy.write_text(
        f"#!/bin/sh\necho >> {tmp_path}/starts\n[ $(wc -l < {tmp_path}/starts) -gt {kills} ] || kill -9 $$\n"
        f'exec {find_mosquitto()} "$@"\n'
    )
    shy.chmod(0o755)
    monkeypatch.setattr(launching, "find_mosquitto", lambda: str(shy))
    chosen = launching.free_port() if port is None else port
    if kills < 5:
        async with launch(chosen, embedded=False) as broker:
            assert chosen in (0, broker.port)
            async with Bus(broker.url(), service="trainer", device="edge-0"):
                pass
    else:
        with pytest.raises(BrokerError, match="ended with -9"):
            async with launch(chosen, embedded=False):
                pass
    assert len((tmp_path / "starts").read_text()) == min(kills + 1, 5)


async def test_a_predecessor_may_take_a_moment_to_leave_its_port() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    asyncio.get_running_loop().call_later(0.3, taken.close)
    async with launch(taken.getsockname()[1], embedded=True) as running:
        assert taken.fileno() == -1
        assert running.process.returncode is None


@pytest.mark.parametrize("embedded", KINDS)
async def test_a_broker_that_ends_takes_nobody_in_again(embedded: bool) -> None:
    """amqtt did, as long as it waited for a client that acknowledges nothing, and so did not end at all."""
    async with launch(embedded=embedded) as broker, Bus(broker.url(), "agent", "d", give_up_s=60) as bus:
        reader, mute = await asyncio.open_connection(broker.host, broker.port)
        mute.write(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04mute" + b"\x82\x06\x00\x01\x00\x01#\x01")
        await reader.readexactly(4 + 5)  # the connection and the subscription, accepted
        await bus.publish("event/progress", Progress(session="s", phase="train", step=1, steps=2, value=0.5))
        await reader.readexactly(1)  # it comes here too, and is never acknowledged
        broker.process.terminate()
        assert await asyncio.wait_for(broker.process.wait(), 60) == 0
        assert bus.counts["reconnected"] == 0
        bus._fail(BusError("it has nobody to say goodbye to"))
        mute.close()


async def test_without_mosquitto_the_embedded_one_runs_and_nothing_bridges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "find_mosquitto", lambda: None)
    async with launch() as running:
        assert running.kind == "embedded"
        async with Bus(running.url(), "agent", "d") as bus:
            await bus.flush()
    with pytest.raises(BrokerError, match="not on PATH"):
        async with launch(embedded=False):
            pass
    with pytest.raises(BrokerError, match="only mosquitto can bridge"):
        async with launch(bridge=Bridge("server", 1883)):
            pass
    with pytest.raises(BrokerError, match=r"only mosquitto keeps accounts and certificates.*apt-get install mosquitto"):
        async with launch(accounts=accounts.make_accounts()):
            pass
    with pytest.raises(BrokerError, match=r"only mosquitto may listen on 0\.0\.0\.0"):
        async with launch(host="0.0.0.0", accounts=()):
            pass


@pytest.mark.parametrize("embedded", KINDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_broker_does_not_outlive_its_parent(embedded: bool, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "broker", "--port", "0", *(["--embedded"] if embedded else [])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)):
            pass
        process.send_signal(number)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            time.sleep(0.05)
            continue
        return
    pytest.fail("the broker is still there")


# -- TLS --------------------------------------------------------------------------------------------------------------


def documented() -> list[str]:
    """The commands of docs/bus.md that make certificates and start a broker with them, for this host."""
    block = re.search(r"```sh\n(openssl.*?)```", (ROOT / "docs" / "bus.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return block[1].replace("broker.example", "localhost").replace("192.0.2.7", "127.0.0.1").splitlines()


def authority(folder: Path) -> Tls:
    """A certificate for 127.0.0.1 and who signed it, made as docs/bus.md says."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder.mkdir()
    subprocess.run(["sh", "-ec", "\n".join(documented()[:-1])], cwd=folder, check=True, capture_output=True)
    return Tls(folder / "ca.pem", folder / "broker.pem", folder / "broker.key")


@needs_mosquitto
async def test_the_documented_broker_with_tls_comes_up(tmp_path: Path) -> None:
    tls = authority(tmp_path / "made")
    words = documented()[-1].split()
    assert words[:3] == ["python", "-m", "broker"]
    command = [*child.python("broker"), *(word if word != "8883" else "0" for word in words[3:])]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tls.ca.parent, env=child.environment(), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    _, _, url = (await process.stdout.readline()).decode().split()
    device = accounts.read_accounts(tls.ca.parent / "accounts")[0]
    where = url.replace("0.0.0.0", f"device:{device.password}@127.0.0.1")
    async with Bus(where, "agent", "d", tls=BusTls(ca_file=str(tls.ca))) as bus:
        await bus.flush()
    process.terminate()
    await process.wait()


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@needs_mosquitto
async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = authority(tmp_path / "ours"), authority(tmp_path / "other")
    async with launch(accounts=accounts.make_accounts(), tls=ours) as running:
        url = running.url("device")
        assert url.startswith("mqtts://")
        async with Bus(url, "agent", "d", tls=BusTls(ca_file=str(ours.ca))) as bus:
            await bus.announce(version=1)
            await bus.flush()
        monkeypatch.setenv("R2F_CA_FILE", str(ours.ca))
        async with Bus(url, "agent", "d") as bus:
            await bus.flush()
        with pytest.raises(BusError, match="no certificate that we trust"):
            async with Bus(url, "agent", "d", tls=BusTls(ca_file=str(other.ca)), give_up_s=5):
                pass
        with pytest.raises(BusError, match="unreachable"):
            async with Bus(url.replace("mqtts", "mqtt"), "agent", "d", give_up_s=0.3):
                pass


async def deaf_to_sigterm() -> asyncio.subprocess.Process:
    """A process that ends by SIGKILL alone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def test_stopping_waits_and_then_kills() -> None:
    stubborn = await deaf_to_sigterm()
    await ending.stop(stubborn, 0.2)
    assert stubborn.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{stubborn.pid}/exe").exists()


async def test_who_is_cancelled_stops_for_good() -> None:
    """Up to Python 3.11.2 a timeout in a task that was cancelled was one more cancelling, and nobody was killed."""
    stubborn = await deaf_to_sigterm()

    async def held() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await ending.stop(stubborn, 0.2)

    holding = asyncio.create_task(held())
    await asyncio.sleep(0)
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert stubborn.returncode == -signal.SIGKILL


def test_the_address_of_an_ipv6_broker_is_one() -> None:
    running = Running("mosquitto", "::1", 1883, (), None, None, None)  # type: ignore[arg-type]
    assert running.url() == "mqtt://[::1]:1883"
    assert broker_address(running.url()).host == "::1"


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.8.9.10", True), ("::1", True), ("0.0.0.0", False), ("::", False),
        ("127.example.org", False), ("127.0.0.1.example.org", False), ("", False),
    ],
)  # fmt: skip
def test_a_name_that_begins_like_loopback_is_not(host: str, only_here: bool) -> None:
    assert config.is_loopback(host) == only_here
