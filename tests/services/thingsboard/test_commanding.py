"""What ThingsBoard commands, on the real services of a device, through a real broker and the strict stand-in."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.datasets import load
from accelsim.engine import Engine
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from broker.child import environment, python
from services.bus import Bus
from services.bus.messages import SetMode
from services.thingsboard import carrying_out, commands, firmware
from services.thingsboard.bridge import Bridge
from tests.services.thingsboard.bridging import bridged, until
from tests.services.thingsboard.standin import Device, Standin

pytestmark = pytest.mark.timeout(180)


FAULTLESS = {"input": 0, "weight": 0, "output": 0}


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    data = load("digits")
    return lower(zoo.build("digits_cnn", 10).eval(), data.train_images[:64], data.mean, data.std, name="digits_cnn")


@pytest.fixture(scope="module")
def models(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "run").mkdir()
    storage.save(network, folder / "run/retrained.safetensors")
    return folder


@pytest.fixture(scope="module")
def pipeline() -> Iterator[str]:
    """The broker of a device's services."""
    with ExitStack() as stack:

        def start(*command: str, **options: object) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(python(*command), env=environment(), stderr=subprocess.DEVNULL, text=True, **options)  # type: ignore[call-overload]
            )
            stack.callback(process.terminate)
            return process

        broker = start("broker", "--port", "0", "--embedded", stdout=subprocess.PIPE)
        assert broker.stdout is not None
        url = broker.stdout.readline().split()[-1]
        start("services.edge_agent", "--data", "digits", "--broker", url)
        start("services.voter", "--broker", url)
        for side in ("device", "server"):
            start("services.codec", "--side", side, "--broker", url)
        yield url


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying_out, "QUIET_S", 0.0)


@asynccontextmanager
async def commanded(pipeline: str, tb: Standin, models: Path | None = None) -> AsyncIterator[tuple[Bridge, Device]]:
    async with bridged(pipeline, tb, commands=True, models=models) as bridge:
        services = [f"{name}_online" for name in ("agent", "voter", "codec-device", "codec-server")]
        await until(lambda: "edge-0" in tb.devices, 60)
        device = tb.devices["edge-0"]
        await until(lambda: all(device.client.get(name) for name in services) and "samples_train" in device.client, 60)
        yield bridge, device


async def test_mode_model_and_data(pipeline: str, tb: Standin, models: Path, network: Network) -> None:
    digest = storage.digest(network)
    async with commanded(pipeline, tb, models) as (bridge, device):
        assert await tb.rpc("edge-0", "getData", {"iteration": 0, "split": "train", "samples": [0]}) == {
            "ok": False,
            "error": "no network was deployed to edge-0 by this bridge; call deployModel first",
        }
        rates = {"input": 1e-3, "weight": 0.0}
        answer = await tb.rpc(
            "edge-0", "setAIoTMode", {"mode": "training", "rates": rates, "seed": 5, "scheme": {"exact": True}}
        )
        assert answer["ok"]
        await until(lambda: device.client.get("effective_ber_input") == 1e-3)
        assert (device.client["effective_mode"], device.client["effective_seed"]) == ("training", 5)
        answer = await tb.rpc("edge-0", "deployModel", {"sha256": digest[:12]})
        assert answer == {"ok": True, "version": 1, "sha256": f"sha256-{digest}"}
        await until(lambda: device.client["model_version"] == 1)
        samples = [0, 5, 7]
        told = await tb.rpc("edge-0", "getData", {"iteration": 3, "split": "train", "samples": samples})
        again = await tb.rpc("edge-0", "getData", {"iteration": 3, "split": "train", "samples": samples})
        assert told["ok"]
        assert (told["version"], told["iteration"], told["mismatched"]) == (1, 3, 0)
        assert told["tensors"]["images"]["shape"] == [3, 8, 8, 1]
        assert {name for name in told["tensors"] if name != "images"} == {str(index) for index, _ in network.convs()}
        assert told["bytes"] > 0
        assert again["tensors"] == told["tensors"]  # the same faults again
        # Without faults, the classes are the network's own.
        assert (await tb.rpc("edge-0", "setAIoTMode", {"mode": "inference", "rates": FAULTLESS}))["ok"]
        told = await tb.rpc("edge-0", "getData", {"iteration": 4, "split": "test", "samples": samples})
        images = load("digits").test_images[samples]
        outputs = Engine(network, "portable").run(network.quantize_images(images))[-1]
        assert told["top1"] == outputs.reshape(3, -1).argmax(axis=1).tolist()
        assert told["right"] == int(np.count_nonzero(np.array(told["top1"]) == load("digits").test_labels[samples]))
        assert (await tb.rpc("edge-0", "deployModel", {"version": 1}))["version"] == 2
        assert bridge.left_out == 0
    assert not tb.said("ANSWER_TO_NOBODY")


REFUSED = [
    ("setAIoTMode", {"mode": "sleep"}, "sleep"),
    ("setAIoTMode", {"mode": "training", "rates": {"inputs": 0.1}}, "'inputs' is none of input"),
    ("setAIoTMode", {"mode": "training", "rates": {"input": 2}}, "<= 1"),
    ("setAIoTMode", {"mode": "training", "seed": -1}, "seed"),
    ("setAIoTMode", {"mode": "training", "scheme": {"codecs": "direct"}}, "'codecs' is none of codec"),
    ("setAIoTMode", {"mode": "training", "scheme": {"codec": "zip"}}, "codec"),
    ("setAIoTMode", None, "setAIoTMode"),
    ("setAIoTMode", {"mode": "training", "more": 1}, "more"),
    ("deployModel", {}, "give one of"),
    ("deployModel", {"sha256": "ab", "ota": True}, "sha256"),
    ("deployModel", {"sha256": "../../etc/passwd"}, "sha256"),
    ("deployModel", {"sha256": "00000000"}, "no model has sha256"),
    ("deployModel", {"version": 99}, "was not deployed by this bridge"),
    ("deployModel", {"ota": True}, "has no firmware"),
    ("getData", {"iteration": 0, "split": "train", "samples": []}, "samples"),
    ("getData", {"iteration": 0, "split": "train", "samples": list(range(65))}, "samples"),
    ("getData", {"iteration": 1 << 30, "split": "train", "samples": [0]}, "iteration"),
    ("getData", {"iteration": 0, "split": "all", "samples": [0]}, "split"),
    ("reboot", {}, "no method 'reboot'"),
]


async def test_what_is_wrong_is_answered_with_the_reason(pipeline: str, tb: Standin, models: Path) -> None:
    async with commanded(pipeline, tb, models):
        for method, params, reason in REFUSED:
            answer = await tb.rpc("edge-0", method, params)
            assert reason in answer["error"], (method, params)
            assert not answer.get("ok")


async def test_hostile_messages_are_counted_and_dropped(pipeline: str, tb: Standin) -> None:
    async with commanded(pipeline, tb) as (bridge, device):
        assert device.session is not None
        deep = b"[" * 50_000
        told = ("v1/gateway/rpc", "v1/gateway/attributes", "v1/gateway/attributes/response", "v1/devices/me/attributes")
        wrong = (b"", b"\xff\xfe", b"[]", b"7", deep, b'{"a":' + deep)
        hostile = [(topic, payload) for topic in told for payload in wrong]
        hostile += [(topic, b'{"device":"../x","data":{"id":1,"method":"m"}}') for topic in told[:3]]
        hostile += [
            ("v1/gateway/rpc", b'{"device":"edge-0","data":{"id":-1,"method":"getData"}}'),
            ("v1/gateway/rpc", b'{"device":"edge-0","data":{"id":1,"method":"' + b"m" * 65 + b'"}}'),
            ("v1/gateway/attributes", b'{"device":"nobody","data":{"ber":1}}'),
            ("v2/fw/response/1/chunk/0", b"x" * 20_000),
            ("some/other/topic", b"{}"),
        ]
        for topic, payload in hostile:
            device.session.publish(topic, payload)
        await until(lambda: bridge.left_out == len(hostile))
        # A call of a device that the bus does not know is answered.
        tb.child("edge-7").session = device.session
        assert "is not on the bus" in (await tb.rpc("edge-7", "setAIoTMode", {"mode": "training"}))["error"]
        assert bridge.gateway.sessions == 1
        assert (await tb.rpc("edge-0", "setAIoTMode", {"mode": "inference"}))["ok"]


async def test_a_call_that_comes_twice_is_carried_out_once(pipeline: str, tb: Standin) -> None:
    async with commanded(pipeline, tb) as (bridge, _):
        first = await tb.rpc("edge-0", "setAIoTMode", {"mode": "inference"}, number=70)
        assert await tb.rpc("edge-0", "setAIoTMode", {"mode": "inference"}, number=70) == first
        other = await tb.rpc("edge-0", "setAIoTMode", {"mode": "training"}, number=70)
        assert other["seq"] == first["seq"] + 1
        assert bridge.settings["edge-0"][1] == other["seq"]


async def test_what_takes_long_is_accepted_and_its_end_told_as_telemetry(
    pipeline: str, tb: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "ANSWER_S", 0.01)
    async with commanded(pipeline, tb) as (_, device):
        assert await tb.rpc("edge-0", "setAIoTMode", {"mode": "inference"}, number=71) == {"accepted": True, "job": 71}
        await until(lambda: device.told("rpc_71"))
        assert device.told("rpc_71")[0]["ok"] is True


async def test_shared_attributes_configure_once_they_are_quiet(pipeline: str, tb: Standin) -> None:
    modes: list[SetMode] = []
    async with commanded(pipeline, tb) as (_, device), Bus(pipeline, "look", "edge-0", passive=True) as bus:
        await tb.rpc("edge-0", "setAIoTMode", {"mode": "inference", "rates": FAULTLESS})
        await bus.subscribe("down/mode")

        async def look() -> None:
            async for _, message in bus:
                assert isinstance(message, SetMode)
                modes.append(message)

        looking = asyncio.create_task(look())
        await until(lambda: modes)
        modes.clear()
        await tb.set_shared("edge-0", ber=1e-3)
        await tb.set_shared("edge-0", ber_output=1e-4, codec="golden", theta=0.5)
        await tb.set_shared("edge-0", replicas=5, vote="bitwise", seed=9)
        await until(lambda: device.client.get("effective_codec") == "golden")
        assert len(modes) == 1
        wanted = {
            "ber_input": 1e-3,
            "ber_weight": 1e-3,
            "ber_output": 1e-4,
            "theta": 0.5,
            "replicas": 5,
            "vote": "bitwise",
            "seed": 9,
        }
        assert {key: device.client[f"effective_{key}"] for key in wanted} == wanted
        await until(lambda: device.client.get("config_error") == "")
        await tb.set_shared("edge-0", ber=7)
        await until(lambda: "ber: 7" in device.client["config_error"])
        assert len(modes) == 1
        await tb.delete_shared("edge-0", "ber")
        await until(lambda: device.client["config_error"] == "")
        await tb.set_shared("edge-0", codec="chained", replicas=0, protected="[2, 0]")
        await until(lambda: device.client.get("effective_protected") == [0, 2])
        assert (device.client["effective_codec"], device.client["effective_replicas"]) == ("chained", 0)
        looking.cancel()


async def test_shared_attributes_that_changed_while_it_was_away_are_asked_for(pipeline: str, tb: Standin) -> None:
    tb.child("edge-0").shared = {"seed": 4711, "codec": "direct", "protected": [], "color": "red"}
    async with commanded(pipeline, tb) as (_, device):
        await until(lambda: device.client.get("effective_seed") == 4711)
        assert device.client["effective_codec"] == "direct"


async def test_a_device_that_a_run_has_is_not_commanded(pipeline: str, tb: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    async with commanded(pipeline, tb) as (bridge, device):
        async with Bus(pipeline, "trainer", "edge-0", arena_bytes=0):
            await until(lambda: device.client.get("trainer_online"))
            assert "a run has edge-0" in (await tb.rpc("edge-0", "setAIoTMode", {"mode": "training"}))["error"]
            await tb.set_shared("edge-0", ber=0.25)
            await until(lambda: "a run has edge-0" in device.client.get("config_error", ""))
        await until(lambda: not device.client["trainer_online"])
        monkeypatch.setattr(carrying_out, "QUIET_S", 30.0)
        assert "less than 30 s ago" in (await tb.rpc("edge-0", "setAIoTMode", {"mode": "training"}))["error"]
        # What an earlier command left, if any, and nothing of these: no training, no rate of 0.25.
        kept = bridge.settings.get("edge-0")
        assert kept is None or (kept[2].mode == "inference" and kept[2].rates.input != 0.25)


async def test_the_lease_itself_keeps_a_command_from_a_run_that_was_not_heard_of(pipeline: str, tb: Standin) -> None:
    async with commanded(pipeline, tb) as (bridge, device), Bus(pipeline, "trainer", "edge-0", arena_bytes=0):
        await until(lambda: device.client.get("trainer_online"))
        bridge.devices["edge-0"].trainer_seen = -1e9
        answer = await tb.rpc("edge-0", "setAIoTMode", {"mode": "training"})
        assert "another trainer called edge-0" in answer["error"]


async def test_released_firmware_is_fetched_verified_and_deployed(pipeline: str, tb: Standin, network: Network) -> None:
    data = storage.to_bytes(network)
    digest = hashlib.sha256(data).hexdigest()
    async with commanded(pipeline, tb) as (_, _):
        await tb.set_shared("gateway", **tb.assign("gateway", "digits_cnn", digest[:12], data))
        gateway = tb.devices["gateway"]
        await until(lambda: gateway.told("fw_state")[-1:] in (["UPDATED"], ["FAILED"]), 60)
        assert gateway.told("fw_error") == []
        assert gateway.told("fw_state") == ["DOWNLOADING", "DOWNLOADED", "VERIFIED", "UPDATING", "UPDATED"]
        assert gateway.told("current_fw_title") == ["digits_cnn"]
        chunks = [entry for entry in tb.log if entry[1] == "<-" and entry[2].startswith("v2/fw/request/")]
        assert len(chunks) == -(-len(data) // 16_384)
        await until(lambda: gateway.client.get("current_fw_checksum") == f"sha256-{digest}")
        assert (await tb.rpc("edge-0", "deployModel", {"ota": True}))["sha256"] == f"sha256-{digest}"
    # Another bridge does not put it on the devices again.
    gateway.telemetry.clear()
    async with commanded(pipeline, tb) as (bridge, _):
        await until(lambda: bridge.gateway.idle)
        await asyncio.sleep(0.5)
        assert gateway.told("fw_state") == []


@pytest.mark.parametrize("damage", ["checksum", "content", "size", "gone"])
async def test_firmware_that_is_not_what_it_says_is_not_deployed(
    damage: str, pipeline: str, tb: Standin, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firmware, "CHUNK_S", 0.3)
    monkeypatch.setattr(firmware, "TRIES", 2)
    data = b"no network at all" * 2000 if damage == "content" else storage.to_bytes(network)
    announced = tb.assign("gateway", "digits_cnn", "1", data)
    if damage == "checksum":
        announced["fw_checksum"] = "0" * 64
    if damage == "size":
        announced["fw_size"] = len(data) + 1
    if damage == "gone":
        tb.devices["gateway"].firmware = None
    async with commanded(pipeline, tb) as (bridge, _):
        before = dict(bridge.settings)
        await tb.set_shared("gateway", **announced)
        gateway = tb.devices["gateway"]
        await until(lambda: gateway.told("fw_state")[-1:] == ["FAILED"], 30)
        await asyncio.sleep(1.0)
        assert len(gateway.told("fw_error")) == 1  # it is not tried again by itself
        assert gateway.told("fw_state").count("DOWNLOADING") == 1
        assert "UPDATING" not in gateway.told("fw_state")
        assert bridge.settings == before


async def test_a_broker_that_refuses_the_commands_account_is_said(tb: Standin, pipeline: str) -> None:
    async with commanded(pipeline, tb) as (bridge, _):
        bridge.commands.carrier.broker = "mqtt://127.0.0.1:1"  # type: ignore[union-attr]
        answer = await tb.rpc("edge-0", "setAIoTMode", {"mode": "training"})
        assert "unreachable" in answer["error"]


async def test_a_flood_of_commands_is_bounded(pipeline: str, tb: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    async with commanded(pipeline, tb) as (bridge, _):
        begun, go = 0, asyncio.Event()

        async def slow(*_: object) -> dict[str, object]:
            nonlocal begun
            begun += 1
            await go.wait()
            return {"ok": True, "seq": begun}

        monkeypatch.setattr(bridge.commands.carrier, "set_mode", slow)  # type: ignore[union-attr]
        calls = [asyncio.create_task(tb.rpc("edge-0", "setAIoTMode", {"mode": "training"})) for _ in range(100)]
        await until(lambda: sum(call.done() for call in calls) >= 100 - commands.WAITING - 1)
        assert begun == 1
        go.set()
        answers = await asyncio.gather(*calls)
        carried_out = [answer for answer in answers if answer["ok"]]
        assert commands.WAITING <= len(carried_out) <= commands.WAITING + 1
        assert all("wait already" in answer["error"] for answer in answers if not answer["ok"])
        assert begun == len(carried_out)
