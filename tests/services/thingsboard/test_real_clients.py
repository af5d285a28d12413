"""ThingsBoard's own clients against the strict stand-in: where they and the bridge are understood alike, it is strict about the
right things. They are in environments of their own, for their packages overwrite paho (docs/thingsboard.md)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from broker.launch import Running
from services.bus import Bus
from services.bus.messages import Progress
from tests.services.thingsboard.bridging import bridged, until
from tests.services.thingsboard.standin import Standin

pytestmark = pytest.mark.timeout(120)

FOLDER = Path(os.environ.get("R2F_THINGSBOARD_CLIENTS", Path(__file__).resolve().parents[3] / ".thingsboard"))


def client(name: str, package: str) -> Path:
    """The Python of one of ThingsBoard's clients; skips where it is not there."""
    found = FOLDER / name / "bin/python"
    if not found.exists():
        pytest.skip(f"{package} is not at {FOLDER / name}; docs/thingsboard.md says how to install it")
    return found


async def script(interpreter: Path, text: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        interpreter, "-I", "-c", text, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


GATEWAY = """
import json, sys, threading, time
from tb_gateway_mqtt import TBGatewayMqttClient
client = TBGatewayMqttClient("127.0.0.1", int(sys.argv[1]), "TOKEN")
client.connect()
deadline = time.time() + 20
while not client.is_connected() and time.time() < deadline:
    time.sleep(0.05)
said, done = {}, threading.Event()
def call(gateway, request):
    said["call"] = request
    client.gw_send_rpc_reply(request["device"], request["data"]["id"], {"ok": True, "seq": 1}, quality_of_service=1)
client.gw_set_server_side_rpc_request_handler(call)
def changed(update, *_):
    said["changed"] = update
    done.set()
client.gw_connect_device("edge-0", "r2f-device")
client.gw_subscribe_to_all_attributes(changed)
values = {"phase": "train", "step": 1, "steps": 100, "loss": 0.0123456789, "grad_norm": 1.5}
client.gw_send_telemetry("edge-0", [{"ts": 5, "values": values}]).get()
client.gw_send_attributes("edge-0", {"agent_online": True}).get()
print("ready", flush=True)
done.wait(20)
time.sleep(0.3)
client.gw_disconnect_device("edge-0")
time.sleep(0.3)
client.disconnect()
client.stop()
print(json.dumps(said), flush=True)
"""


async def acted(tb: Standin) -> Any:
    """A call and a shared attribute, as a person has ThingsBoard send them; the call's answer."""
    answer = await tb.rpc("edge-0", "setAIoTMode", {"mode": "inference"})
    await tb.set_shared("edge-0", ber=0.5)
    return answer


async def test_the_gateway_interface_as_their_client_speaks_it(tb: Standin) -> None:
    running = await script(client("sdk", "tb-mqtt-client"), GATEWAY, str(tb.port))
    assert running.stdout is not None
    while (line := await running.stdout.readline()) != b"ready\n":
        if not line:
            _, errors = await running.communicate()
            pytest.fail(errors.decode())
    device = tb.devices["edge-0"]
    await until(lambda: device.client.get("agent_online"))
    assert await acted(tb) == {"ok": True, "seq": 1}
    said, errors = await running.communicate()
    told = json.loads(said.splitlines()[-1])
    assert told["call"]["data"]["method"] == "setAIoTMode", errors.decode()
    assert told["changed"] == {"device": "edge-0", "data": {"ber": 0.5}}
    assert_told(tb)


async def test_the_bridge_is_understood_the_same(broker: Running, tb: Standin) -> None:
    async with bridged(broker.url(), tb):
        async with Bus(broker.url(), "agent", "edge-0", arena_bytes=0) as bus:
            await until(lambda: "edge-0" in tb.devices)
            await bus.publish(
                "event/progress",
                Progress(session="s", phase="train", step=1, steps=100, value=0.012345678901234567, grad_norm=1.5),
            )
            await until(lambda: tb.devices["edge-0"].told("loss"))
        await until(lambda: tb.devices["edge-0"].session is None)
    assert_told(tb)


def assert_told(tb: Standin) -> None:
    """What a device's telemetry, attributes and session come to, whoever spoke for it."""
    device = tb.devices["edge-0"]
    assert device.kind == "r2f-device"
    assert device.session is None
    ((_, values),) = device.telemetry
    assert values == {"phase": "train", "step": 1, "steps": 100, "loss": 0.0123456789, "grad_norm": 1.5}
    assert "agent_online" in device.client
    for wrong in ("BAD", "UNKNOWN_TOPIC", "QOS0_ON_GATEWAY_TOPIC", "TOO_LONG"):
        assert not tb.said(wrong)


DEVICE = """
import hashlib, json, sys, threading, time
from tb_device_mqtt import TBDeviceMqttClient, ProvisionClient
port = int(sys.argv[1])
token = TBDeviceMqttClient.provision("127.0.0.1", "pk", "ps", port=port, device_name="fresh")
client = TBDeviceMqttClient("127.0.0.1", port, "TOKEN")
client.connect()
deadline = time.time() + 20
while not client.is_connected() and time.time() < deadline:
    time.sleep(0.05)
got, done = {}, threading.Event()
def firmware(data, version):
    got["sha256"], got["bytes"], got["version"] = hashlib.sha256(data).hexdigest(), len(data), version
    done.set()
client.set_on_firmware_received_callback(lambda c, data, version: firmware(data, version))
client.send_telemetry({"tried": 1}).get()
client.get_firmware_update()
done.wait(30)
print(json.dumps({"token": str(token), **got}), flush=True)
client.disconnect()
client.stop()
"""


async def test_provisioning_and_firmware_as_their_client_speaks_them(tb: Standin) -> None:
    data = bytes(range(256)) * 500
    announced = tb.assign("gateway", "net", "v1", data)
    await tb.set_shared("gateway", **announced)
    running = await script(client("sdk", "tb-mqtt-client"), DEVICE, str(tb.port))
    said, errors = await running.communicate()
    told = json.loads(said.splitlines()[-1]) if said else pytest.fail(errors.decode())
    assert "fresh" in tb.devices
    assert tb.devices["gateway"].told("tried") == [1]
    assert (told.get("bytes"), told.get("sha256")) == (len(data), announced["fw_checksum"]), errors.decode()
