"""What each account may publish, read and leave behind, on the brokers of compose.yaml, topic by topic."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import yaml

from broker import certificates, pair
from broker.certificates import Identity
from broker.ending import stop
from broker.launch import find_mosquitto, free_port
from tests.security import raw
from tests.security.sites import files

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: only it knows accounts")

# By the account's role: r reads, w writes. A device's are of its own topics alone; of another's it has none.
TABLE = """
topic            device  server  watch
up/layers        w       r       r
up/ack           w       r       r
up/flow          w       rw      r
down/model       r       rw      r
down/forward     r       rw      r
down/flow        rw      rw      r
edge/replicas    rw      -       r
edge/model       rw      -       r
server/inputs    -       rw      r
server/model     -       rw      r
state/agent      rw      r       r
state/voter      rw      r       r
state/codec-device  rw   r       r
state/trainer    r       rw      r
state/codec-server  r    rw      r
state/claim      rw      rw      r
state/other      r       r       r
event/forward    rw      rw      r
event/progress   rw      rw      r
"""
ROWS = [line.split() for line in TABLE.split("\n") if line]
RIGHTS = {row[0]: dict(zip(ROWS[0][1:], row[1:], strict=True)) for row in ROWS[1:]}
OWN, OTHER = "edge-0", "edge-9"
STRANGE = (
    "r2f/v1",
    "r2f/v2/edge-0/up/layers",
    "r2f/v1/edge-0",
    "r2f/v1/edge-0/up/layers/more",
    "elsewhere",
    "$SYS/broker/uptime",
)
TOPICS = [f"r2f/v1/{device}/{name}" for device in (OWN, OTHER) for name in RIGHTS] + list(STRANGE)
ROLES = {OWN: "device", OTHER: "device", "server": "server", "watch": "watch"}
# A device's own broker knows the device and who watches; whoever else has a certificate gets in, and may do nothing.
KNOWN = {"server-broker": set(ROLES), "edge-0-broker": {OWN, "watch"}}
CASES = [(broker, account) for broker in KNOWN for account in ROLES]


def may(broker: str, account: str, topic: str, letter: str) -> bool:
    """What the table says."""
    if account not in KNOWN[broker] or topic in STRANGE:
        # What is below a plane counts as of the plane; no service listens there.
        deeper = topic == "r2f/v1/edge-0/up/layers/more" and account in KNOWN[broker]
        return deeper and may(broker, account, "r2f/v1/edge-0/up/layers", letter)
    _, _, device, name = topic.split("/", 3)
    role = ROLES[account]
    return letter in RIGHTS[name][role] and (role != "device" or device == account)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What compose.yaml's own command makes, and the identities of a second device and of one who sees all."""
    folder = tmp_path_factory.mktemp("identities")
    command = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["broker-files"]["command"]
    assert command[:3] == ["python", "-m", "broker.pair"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pair", *command[3:-1], str(folder)])
        pair.main()
    certificates.issue(folder, Identity(OTHER, "device", OTHER))
    certificates.issue(folder, Identity("all-seeing", "watch"))
    for broker in KNOWN:
        with (folder / broker / "acl").open("a") as file:
            file.write("user all-seeing\ntopic readwrite #\ntopic read $SYS/#\n")
    return folder


@contextlib.asynccontextmanager
async def broker_of(made: Path, name: str) -> AsyncIterator[int]:
    """That broker, at a loopback address in place of the container's; yields its port."""
    port = free_port()
    config = (made / name / "mosquitto.conf").read_text()
    assert "listener 8883 0.0.0.0\n" in config
    moved = config.replace("listener 8883 0.0.0.0", f"listener {port} 127.0.0.1").split("connection r2f")[0]
    (made / f"{name}.conf").write_text(moved)
    program = find_mosquitto()
    assert program is not None
    with (made / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(program, "-c", str(made / f"{name}.conf"), stdout=log, stderr=log)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.02)
        yield port
    finally:
        await stop(process)


def client(made: Path, port: int, name: str, **options: Any) -> aiomqtt.Client:
    # The certificate names the container, not this address.
    parameters = files(made / name).parameters()
    return aiomqtt.Client("127.0.0.1", port, tls_params=parameters, tls_insecure=True, **options)


async def until(client: aiomqtt.Client, last: str) -> list[aiomqtt.Message]:
    """What arrives before the message on the topic ``last``."""
    found = []
    async with asyncio.timeout(60):
        async for message in client.messages:
            if str(message.topic) == last:
                return found
            found.append(message)
    raise AssertionError("the connection ended")


@pytest.mark.parametrize(("broker", "account"), CASES)
async def test_what_an_account_may_publish(made: Path, broker: str, account: str) -> None:
    """Plain and retained. MQTT 3.1.1 acknowledges what it drops, so it counts what arrives."""
    async with broker_of(made, broker) as port:
        async with client(made, port, "all-seeing") as seeing, client(made, port, account) as acting:
            await seeing.subscribe([("#", 1), ("$SYS/broker/uptime", 1)])
            for topic in TOPICS:
                await acting.publish(topic, account, qos=1, retain=True)
            await seeing.publish("end", b"", qos=1)
            arrived = {str(message.topic) for message in await until(seeing, "end")}
        assert arrived == {topic for topic in TOPICS if may(broker, account, topic, "w")}
        async with client(made, port, "all-seeing") as seeing:
            await seeing.subscribe("#", qos=1)
            await seeing.publish("end", b"", qos=1)
            kept = {str(message.topic) for message in await until(seeing, "end")}
        assert kept == arrived


@pytest.mark.parametrize(("broker", "account"), CASES)
async def test_what_an_account_may_read(made: Path, broker: str, account: str) -> None:
    """Live and retained, by each topic's name and by wildcards over all of them."""
    async with broker_of(made, broker) as port, client(made, port, "all-seeing") as seeing:
        for topic in TOPICS:
            if not topic.startswith("$"):
                await seeing.publish(topic, b"retained", qos=1, retain=True)
        allowed = {topic for topic in TOPICS if may(broker, account, topic, "r")}
        for patterns in (TOPICS, ["#", "$SYS/#"], ["+/+/+/+/+", "r2f/v1/+/#"]):
            async with client(made, port, account) as acting:
                await acting.subscribe([(pattern, 1) for pattern in patterns])
                for what in (b"live", b"after"):  # once all of the second round is there, all of the first was
                    for topic in TOPICS:
                        if not topic.startswith("$"):
                            await seeing.publish(topic, what, qos=1)
                found: set[tuple[str, bytes]] = set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(60 if allowed else 0.2):
                        async for message in acting.messages:
                            found.add((str(message.topic), bytes(message.payload)))
                            if {topic for topic, what in found if what == b"after"} >= allowed:
                                break
            assert found == {(topic, what) for topic in allowed for what in (b"live", b"after", b"retained")}


@pytest.mark.parametrize(("broker", "account"), CASES)
async def test_what_will_an_account_may_leave(made: Path, broker: str, account: str) -> None:
    """A broker may take the connection all the same, and forget the will when it comes to that."""
    async with broker_of(made, broker) as port, client(made, port, "all-seeing") as seeing:
        await seeing.subscribe("#", qos=1)
        # The broker does one thing after another: when it publishes the last will, it has done with those before.
        for who, topic in [*((account, topic) for topic in TOPICS), ("all-seeing", "end")]:
            tls = raw.context(made / who, made / who / "ca.pem")
            async with raw.opened("127.0.0.1", port, tls, raw.connect(f"will of {who}", topic)) as (code, _, _):
                assert code in (0, 5)
        arrived = {str(message.topic) for message in await until(seeing, "end")}
        assert arrived == {topic for topic in TOPICS if may(broker, account, topic, "w")}


@pytest.mark.parametrize("broker", list(KNOWN))
async def test_whoever_has_no_certificate_does_not_get_in(made: Path, broker: str, tmp_path: Path) -> None:
    async with broker_of(made, broker) as port:
        ca = aiomqtt.TLSParameters(str(made / OWN / "ca.pem"))
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", port, tls_params=ca, tls_insecure=True, timeout=2):
                pass
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", port, username="server", password="server", timeout=2):
                pass
