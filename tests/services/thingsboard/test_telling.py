"""What ThingsBoard hears of the bus, through a real broker and the strict stand-in."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from accelsim.faults import Rates
from broker.child import environment, python
from broker.launch import Running, launch
from services.bus import Bus, BusError, topics
from services.bus.messages import Progress, SetMode, State, Timing
from services.thingsboard.bridge import Bridge, Options
from services.thingsboard.core.outbox import Packet
from services.thingsboard.gateway import address
from tests.services.thingsboard.bridging import bridged, until
from tests.services.thingsboard.standin import Standin

pytestmark = pytest.mark.timeout(60)


def step(number: int, value: float = 0.5) -> Progress:
    return Progress(session="s", phase="train", step=number, steps=100, value=value, grad_norm=1.5)


async def test_a_device_is_connected_told_of_and_disconnected(broker: Running, tb: Standin) -> None:
    async with bridged(broker.url(), tb) as bridge:
        async with Bus(broker.url(), "agent", "edge-0", arena_bytes=0) as bus:
            await bus.announce(version=3, samples={"train": 7, "test": 3})
            await until(lambda: "edge-0" in bridge.devices)
            await bus.publish("event/progress", step(1, 0.012345678901234567))
            for segment in range(3):
                timing = Timing(session="s", stage="compress", iteration=1, host_s=0.5 + segment, bytes=100, segment=segment)
                await bus.publish("event/compress", timing)
            rates = Rates(input=1e-3, weight=1e-4)
            await bus.publish(
                "down/mode", SetMode(session="12345", seq=1, mode="training", rates=rates, seed=2**40), retain=True
            )
            await until(lambda: "edge-0" in tb.devices and tb.devices["edge-0"].told("compress_bytes"))
            await until(lambda: "effective_mode" in tb.devices["edge-0"].client)
            device = tb.devices["edge-0"]
            assert device.session is not None
            assert device.client["agent_online"] is True
        await until(lambda: device.session is None)
    assert device.kind == "r2f-device"
    assert device.client["agent_online"] is False
    assert device.client["agent_boot"] == f"b-{bus.origin}"
    assert (device.client["model_version"], device.client["samples_train"], device.client["samples_test"]) == (3, 7, 3)
    assert device.told("loss") == [0.0123456789]  # to nine digits: more decimals than 16 would have made it text
    assert (device.told("step"), device.told("steps"), device.told("phase")) == ([1], [100], ["train"])
    assert (device.told("compress_bytes"), device.told("compress_host_s")) == ([300], [2.5])
    assert device.client["session"] == "'12345"  # text, not the number
    assert (device.client["effective_ber_input"], device.client["effective_ber_weight"]) == (1e-3, 1e-4)
    assert (device.client["effective_seed"], device.client["effective_mode"]) == (2**40, "training")
    assert tb.devices["gateway"].client["bridge_version"].startswith("r2f ")
    assert not tb.said("BAD")
    assert not tb.said("UNKNOWN_TOPIC")


async def test_thingsboard_away_at_first_and_in_the_middle(broker: Running, tb: Standin) -> None:
    await tb.stop()
    async with bridged(broker.url(), tb) as bridge, Bus(broker.url(), "agent", "edge-0", arena_bytes=0) as bus:
        await until(lambda: "edge-0" in bridge.devices)
        for number in range(1, 4):
            await bus.publish("event/progress", step(number))
        await tb.start()
        await until(lambda: "edge-0" in tb.devices and len(tb.devices["edge-0"].told("step")) == 3)
        await tb.stop()
        for number in range(4, 7):
            await bus.publish("event/progress", step(number))
        await asyncio.sleep(0.3)
        await tb.start()
        device = tb.devices["edge-0"]
        await until(lambda: set(device.told("step")) == set(range(1, 7)))
        await until(lambda: device.session is not None)
        assert bridge.gateway.sessions == 2


async def test_a_token_that_is_none_ends_the_bridge_with_a_line(broker: Running, tb: Standin) -> None:
    bridge = Bridge(Options(broker.url(), address(f"mqtt://WRONG@127.0.0.1:{tb.port}", None)))
    with pytest.raises(BusError, match="refuses the credentials"):
        await bridge.serve()


async def test_the_token_of_a_plain_device_is_named(broker: Running, tb: Standin) -> None:
    tb.add("plain", "PLAIN")
    bridge = Bridge(Options(broker.url(), address(f"mqtt://PLAIN@127.0.0.1:{tb.port}", None)))
    with pytest.raises(BusError, match="no gateway"):
        await bridge.serve()


async def test_two_bridges_of_one_token_do_not_fight(broker: Running, tb: Standin) -> None:
    first = Bridge(Options(broker.url(), address(f"mqtt://TOKEN@127.0.0.1:{tb.port}", None)))
    serving = asyncio.create_task(first.serve())
    await until(lambda: first.gateway.there)
    async with bridged(broker.url(), tb) as second:
        with pytest.raises(BusError, match="another client has the session"):
            await serving
        await until(lambda: second.gateway.there)
        await asyncio.sleep(0.5)
        assert second.gateway.sessions == 1


async def test_a_message_on_which_sessions_end_is_given_up_and_others_arrive(broker: Running, tb: Standin) -> None:
    async with bridged(broker.url(), tb) as bridge:
        await until(lambda: bridge.gateway.there)
        bridge.outbox.put_back(Packet("v1/gateway/telemetry", b'{"edge-0":"' + b"x" * 70_000 + b'"}', "telemetry", "edge-0"))
        bridge.outbox.tell("edge-0", {"agent_online": True})
        bridge.gateway.wake()
        await until(lambda: "edge-0" in tb.devices and tb.devices["edge-0"].client.get("agent_online"), 20)
        assert bridge.outbox.counts["refused"] == 1
        await until(lambda: tb.devices["gateway"].client.get("bridge_refused") == 1)


async def test_a_message_that_thingsboard_refuses_is_counted_and_the_session_goes_on(broker: Running, tb: Standin) -> None:
    async with bridged(broker.url(), tb) as bridge:
        await until(lambda: bridge.gateway.there)
        bridge.outbox.put_back(Packet("v1/gateway/telemetry", b"{", "telemetry", "edge-0"))
        bridge.gateway.wake()
        await until(lambda: bridge.outbox.counts["refused"] == 1)
        await until(lambda: tb.devices["gateway"].client.get("bridge_refused") == 1)
        assert bridge.gateway.sessions == 1


async def test_a_larger_packet_than_is_read_ends_the_session_and_not_the_bridge(broker: Running, tb: Standin) -> None:
    async with bridged(broker.url(), tb) as bridge:
        await until(lambda: bridge.gateway.there)
        session = tb.devices["gateway"].session
        assert session is not None
        session.publish("v1/gateway/rpc", b"x" * (1 << 18))
        await until(lambda: bridge.gateway.sessions == 2)


async def test_without_commands_what_thingsboard_asks_is_counted_and_left(broker: Running, tb: Standin) -> None:
    async with bridged(broker.url(), tb) as bridge, Bus(broker.url(), "agent", "edge-0", arena_bytes=0):
        await until(lambda: "edge-0" in tb.devices and tb.devices["edge-0"].session)
        with pytest.raises(TimeoutError):
            await tb.rpc("edge-0", "setAIoTMode", {"mode": "training"}, timeout=0.5)
        assert bridge.left_out == 1


@pytest.mark.parametrize("text", ["", "two words", "x" * 300, "\x00"])
def test_a_token_file_that_holds_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(ValueError, match="no access token"):
        address("mqtt://127.0.0.1", tmp_path / "token")


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        address("mqtt://127.0.0.1", tmp_path / "nowhere")


def test_the_token_is_not_shown(tmp_path: Path) -> None:
    assert "SECRET" not in address("mqtt://SECRET@127.0.0.1", None).shown


async def test_rate_limits_of_thingsboard_are_kept(broker: Running, tb: Standin) -> None:
    tb.limits = {"messages": "10:1", "telemetryMessages": None, "telemetryDataPoints": None}
    async with bridged(broker.url(), tb) as bridge:
        await until(lambda: bridge.gateway.there)
        for number in range(5):
            bridge.outbox.tell(f"edge-{number}", {"agent_online": True})
        start = asyncio.get_running_loop().time()
        bridge.gateway.wake()
        await until(lambda: len([name for name in tb.devices if name.startswith("edge-")]) == 5)
        assert asyncio.get_running_loop().time() - start >= 0.4


async def test_the_bus_away_and_back(tb: Standin) -> None:
    async with launch(embedded=True) as first:
        port = first.port
        async with bridged(first.url(), tb) as bridge, Bus(first.url(), "agent", "edge-0", arena_bytes=0) as bus:
            await until(lambda: "edge-0" in tb.devices)
            first.process.kill()
            await first.process.wait()
            async with launch(port, embedded=True), asyncio.timeout(20):
                while not tb.devices["edge-0"].told("step"):
                    await bus.publish("event/progress", step(1))
                    await asyncio.sleep(0.1)
            assert bridge.gateway.sessions == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--thingsboard", "http://127.0.0.1"], "is no broker"),
        (["--thingsboard", "mqtt://127.0.0.1:0", "--token-file", "TOKEN"], "is no broker"),
        (["--thingsboard", "mqtt://127.0.0.1"], "no access token"),
        (["--thingsboard", "mqtt://127.0.0.1", "--token-file", "nowhere"], "--token-file nowhere"),
        (["--thingsboard", "mqtt://T@127.0.0.1", "--device", "a/b"], "is no name of a device"),
        (["--thingsboard", "mqtt://T@127.0.0.1", "--models", "."], "--commands"),
    ],
)
def test_options_that_are_wrong_end_with_a_line(options: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "TOKEN").write_text("T")
    command = python("services.thingsboard", *options)
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_mistake_of_ours_on_one_message_ends_no_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = Bridge(Options("mqtt://127.0.0.1:1", address("mqtt://TOKEN@127.0.0.1:1", None)))
    topic, state = topics.parse("r2f/v1/edge-0/state/agent"), State(session="", service="agent", online=True)
    with monkeypatch.context() as patch:
        patch.setattr(bridge, "_state", lambda *_: 1 / 0)
        bridge._taken(topic, state)
    assert bridge.failed == 1
    bridge._taken(topic, state)
    assert (bridge.failed, list(bridge.devices)) == (1, ["edge-0"])
