"""ThingsBoard's own clients against the strict stand-in: where they and the bridge are understood alike, it is strict about the
right things. They are in environments of their own, for their packages overwrite paho (docs/thingsboard.md)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import aiomqtt
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
    # Their gateway sends what it has every few milliseconds, so one message may come in two parts.
    assert {key: value for _, values in device.telemetry for key, value in values.items()} == {
        "phase": "train",
        "step": 1,
        "steps": 100,
        "loss": 0.0123456789,
        "grad_norm": 1.5,
    }
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


def their_gateway(folder: Path, tb: Standin, broker: Running) -> Path:
    """The configuration of thingsboard-gateway: its MQTT connector on a broker with JSON on it; the main file's path."""
    keys = ("phase", "step", "steps", "loss", "grad_norm")
    connector: dict[str, Any] = {
        "broker": {
            "host": broker.host,
            "port": broker.port,
            "clientId": "their-gateway",
            "version": 4,
            "maxMessageNumberPerWorker": 10,
            "maxNumberOfWorkers": 10,
            "security": {"type": "anonymous"},
        },
        "mapping": [
            {
                "topicFilter": "tb/+/data",
                "subscriptionQos": 1,
                "converter": {
                    "type": "json",
                    "deviceInfo": {
                        "deviceNameExpressionSource": "topic",
                        "deviceNameExpression": "(?<=tb/)(.*?)(?=/data)",
                        "deviceProfileExpressionSource": "constant",
                        "deviceProfileExpression": "r2f-device",
                    },
                    "timeout": 60000,
                    "attributes": [{"type": "raw", "key": "agent_online", "value": "${online}"}],
                    "timeseries": [{"type": "raw", "key": key, "value": f"${{{key}}}"} for key in keys],
                },
            }
        ],
        "requestsMapping": {
            "connectRequests": [],
            "disconnectRequests": [],
            "attributeRequests": [],
            "attributeUpdates": [
                {
                    "deviceNameFilter": ".*",
                    "attributeFilter": "ber",
                    "topicExpression": "tb/${deviceName}/attributes/${attributeKey}",
                    "valueExpression": "${attributeValue}",
                }
            ],
            "serverSideRpc": [
                {
                    "type": "twoWay",
                    "deviceNameFilter": ".*",
                    "methodFilter": "setAIoTMode",
                    "requestTopicExpression": "tb/${deviceName}/rpc/${methodName}/${requestId}",
                    "responseTopicExpression": "tb/${deviceName}/answer/${methodName}/${requestId}",
                    "responseTopicQoS": 1,
                    "responseTimeout": 10000,
                    "valueExpression": "${params}",
                }
            ],
        },
    }
    main = {
        "thingsboard": {
            "host": "127.0.0.1",
            "port": tb.port,
            "remoteShell": False,
            "remoteConfiguration": False,
            "statistics": {"enable": False},
            "checkConnectorsConfigurationInSeconds": 60,
            "security": {"type": "accessToken", "accessToken": "TOKEN"},
            "qos": 1,
        },
        "storage": {"type": "memory", "read_records_count": 100, "max_records_count": 1000},
        "grpc": {"enabled": False},
        "connectors": [{"type": "mqtt", "name": "bus", "configuration": "mqtt.json"}],
    }
    logs = {"version": 1, "disable_existing_loggers": False, "handlers": {}, "loggers": {}, "root": {"level": "ERROR"}}
    for name, text in (("mqtt.json", connector), ("tb_gateway.json", main), ("logs.json", logs)):
        (folder / name).write_text(json.dumps(text))
    return folder / "tb_gateway.json"


THEIRS = """
import sys
from thingsboard_gateway.gateway.tb_gateway_service import TBGatewayService
from thingsboard_gateway.tb_utility import tb_updater
tb_updater.TBUpdater.check_for_new_version = lambda self: None  # it would ask a server of theirs
TBGatewayService(sys.argv[1])
"""


async def test_their_gateway_tells_the_same(broker: Running, tb: Standin, tmp_path: Path) -> None:
    interpreter = client("gateway", "thingsboard-gateway")
    running = await asyncio.create_subprocess_exec(
        *(interpreter, "-I", "-c", THEIRS, their_gateway(tmp_path, tb, broker)),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        async with aiomqtt.Client(broker.host, broker.port) as mqtt:
            await mqtt.subscribe("tb/#", qos=1)
            told = {"online": True, "phase": "train", "step": 1, "steps": 100, "loss": 0.0123456789, "grad_norm": 1.5}
            await until(lambda: tb.said("CONNECT"), 30)
            await asyncio.sleep(3.0)  # until its connector listens
            await mqtt.publish("tb/edge-0/data", json.dumps(told), qos=1)
            await until(lambda: "edge-0" in tb.devices and tb.devices["edge-0"].told("loss"), 20)

            async def answer() -> None:
                async for message in mqtt.messages:
                    topic = str(message.topic)
                    heard[topic] = bytes(message.payload)  # type: ignore[arg-type]
                    if "/rpc/" in topic:
                        await mqtt.publish(topic.replace("/rpc/", "/answer/"), b'{"ok": true, "seq": 1}', qos=1)

            heard: dict[str, bytes] = {}
            answering = asyncio.create_task(answer())
            assert await acted(tb) == {"ok": True, "seq": 1}
            await until(lambda: "tb/edge-0/attributes/ber" in heard)
            answering.cancel()
            assert float(heard["tb/edge-0/attributes/ber"]) == 0.5
    finally:
        running.terminate()
        said, _ = await running.communicate()
        (tmp_path / "said").write_bytes(said)
    await until(lambda: tb.devices["edge-0"].session is None)
    assert_told(tb)
