"""A strict stand-in for ThingsBoard 4.4's MQTT transport, of the standard library alone.

Its rules are those of MqttTransportHandler, AbstractGatewaySessionHandler and JsonConverter of thingsboard/thingsboard at
dfe65d5; where ThingsBoard only drops a thing in silence (QoS 0 on the gateway's topics, NaN), this one fails loudly.
ThingsBoard's own clients are run against it in test_real_clients.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import secrets
import struct
import time
from decimal import Decimal
from typing import Any

MAX = 65536
"""Of a packet's remaining length, topic and ids included."""
DEV, GW = "v1/devices/me", "v1/gateway"
FILTERS = {
    *(f"{DEV}/{name}" for name in ("attributes", "attributes/response/+", "rpc/request/+", "rpc/response/+")),
    *(f"{GW}/{name}" for name in ("attributes", "rpc", "attributes/response")),
    *("v2/a", "v2/a/j", "v2/a/res/+", "v2/a/res/j/+", "v2/r/req/+", "v2/r/req/j/+", "v2/r/res/+", "v2/r/res/j/+"),
    *("v2/fw/response/+/chunk/+", "v2/fw/error", "v2/sw/response/+/chunk/+", "v2/sw/error"),
}
OTA = re.compile(r"v2/(fw|sw)/request/(\d+)/chunk/(\d+)")


class Bad(Exception):
    """A payload that ThingsBoard's adaptor refuses: MQTT 3.1.1 closes the session, MQTT 5 answers with PUBACK 0x99."""


def parse(payload: bytes) -> Any:
    def constant(name: str) -> Any:
        raise Bad(name)

    try:
        return json.loads(payload.decode(), parse_float=Decimal, parse_constant=constant)
    except ValueError as error:
        raise Bad(str(error)) from None


def number(text: str) -> int | float | str:
    value = Decimal(text)
    simple = "." in text and "e" not in text.lower()
    if not simple and value.normalize().as_tuple().exponent >= 0:
        whole = int(value)
        return whole if -(2**63) <= whole < 2**63 else str(whole)
    # More than 16 decimals: stored as text.
    return float(value) if -value.as_tuple().exponent <= 16 else format(value, "f")


def stored(told: Any) -> dict[str, Any]:
    if not isinstance(told, dict):
        raise Bad("not an object")
    found: dict[str, Any] = {}
    for key, value in told.items():
        if value is None:
            continue
        if isinstance(value, bool):
            found[key] = value
        elif isinstance(value, int | Decimal):
            found[key] = number(str(value))
        elif isinstance(value, str):
            found[key] = number(value) if re.fullmatch(r"-?\d+(\.\d+)?|-?\.\d+", value) else value
        else:
            found[key] = json.loads(json.dumps(value, default=float))
    return found


def points(told: Any) -> list[tuple[int, dict[str, Any]]]:
    found, now = [], int(time.time() * 1000)
    for one in told if isinstance(told, list) else [told]:
        if not isinstance(one, dict):
            raise Bad("telemetry is an object or an array of objects")
        if "ts" in one and "values" in one:
            if not isinstance(one["ts"], int):
                raise Bad("ts")
            found.append((one["ts"], stored(one["values"])))
        else:
            found.append((now, stored(one)))
    return found


class Device:
    def __init__(self, name: str, token: str | None = None, gateway: bool = False, kind: str = "default") -> None:
        self.name, self.token, self.gateway, self.kind = name, token, gateway, kind
        self.telemetry: list[tuple[int, dict[str, Any]]] = []
        self.client: dict[str, Any] = {}
        self.shared: dict[str, Any] = {}
        self.session: Session | None = None
        self.firmware: bytes | None = None

    def told(self, key: str) -> list[Any]:
        """Every value of a telemetry key, in the order of their times."""
        return [values[key] for _, values in sorted(self.telemetry, key=lambda point: point[0]) if key in values]


class Standin:
    def __init__(self) -> None:
        self.by_token: dict[str, Device] = {}
        self.devices: dict[str, Device] = {}
        self.rpcs: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self.log: list[tuple[Any, ...]] = []
        self.ids = itertools.count()
        self.limits: dict[str, Any] = {"messages": None, "telemetryMessages": None, "telemetryDataPoints": None}
        self.answers_limits = True
        self.sessions: set[Session] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    def add(self, name: str, token: str, gateway: bool = False) -> Device:
        device = self.devices[name] = self.by_token[token] = Device(name, token, gateway)
        return device

    def child(self, name: str, kind: str = "default") -> Device:
        return self.devices.setdefault(name, Device(name, None, False, kind))

    async def set_shared(self, name: str, **shared: Any) -> None:
        device = self.devices[name]
        device.shared.update(shared)
        if device.session:
            await device.session.attributes(device, shared)

    async def delete_shared(self, name: str, *keys: str) -> None:
        device = self.devices[name]
        for key in keys:
            device.shared.pop(key, None)
        if device.session:
            await device.session.attributes(device, {"deleted": list(keys)})

    async def rpc(self, name: str, method: str, params: Any, timeout: float = 10.0, number: int | None = None) -> Any:
        device = self.devices[name]
        if not device.session:
            raise ConnectionError("device is not connected")
        number = next(self.ids) if number is None else number
        answer = self.rpcs[(name, number)] = asyncio.get_running_loop().create_future()
        await device.session.rpc(device, number, method, params)
        return await asyncio.wait_for(answer, timeout)

    def assign(self, name: str, title: str, version: str, data: bytes) -> dict[str, Any]:
        """The attributes that announce a firmware, for ``set_shared``."""
        self.devices[name].firmware = data
        return {
            "fw_title": title,
            "fw_version": version,
            "fw_size": len(data),
            "fw_checksum_algorithm": "SHA256",
            "fw_checksum": hashlib.sha256(data).hexdigest(),
        }

    async def start(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(lambda r, w: Session(self, r, w).run(), "127.0.0.1", port or self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for session in list(self.sessions):
            session.w.close()
        await asyncio.sleep(0.05)

    def said(self, what: str) -> list[tuple[Any, ...]]:
        return [entry for entry in self.log if entry[1] == what]


class Session:
    def __init__(self, tb: Standin, r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        self.tb, self.r, self.w = tb, r, w
        self.v = 4
        self.device: Device | None = None
        self.provisioning = False
        self.subscribed: dict[str, int] = {}
        self.mid = itertools.count(1)
        self.children: dict[str, Device] = {}
        self.ota: dict[str, int] = {}

    def note(self, *what: Any) -> None:
        self.tb.log.append((self.device.name if self.device else None, *what))

    async def packet(self) -> tuple[int, bytes]:
        head = (await self.r.readexactly(1))[0]
        length = shift = 0
        while True:
            byte = (await self.r.readexactly(1))[0]
            length |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                break
        if length > MAX:
            self.note("TOO_LONG", length)
            raise ConnectionError("too large message")
        return head, await self.r.readexactly(length)

    def send(self, head: int, body: bytes) -> None:
        rest, length = len(body), b""
        while True:
            length += bytes([(rest & 127) | (128 if rest > 127 else 0)])
            rest >>= 7
            if not rest:
                break
        self.w.write(bytes([head]) + length + body)

    def publish(self, topic: str, message: Any) -> None:
        """At the granted QoS; at 1 where the topic was never subscribed to."""
        qos = next((q for pattern, q in self.subscribed.items() if matches(pattern, topic)), 1)
        body = struct.pack("!H", len(topic)) + topic.encode()
        if qos:
            body += struct.pack("!H", (next(self.mid) - 1) % 65535 + 1)
        if self.v == 5:
            body += b"\0"
        self.note("->", topic, message)
        raw = isinstance(message, bytes)
        self.send(
            0x30 | qos << 1, body + (message if raw else json.dumps(message, separators=(",", ":"), default=float).encode())
        )

    def ack(self, mid: int, code: int = 0) -> None:
        if mid:
            self.send(0x40, struct.pack("!H", mid) + (bytes([code, 0]) if self.v == 5 else b""))

    async def run(self) -> None:
        self.tb.sessions.add(self)
        try:
            head, body = await self.packet()
            if head >> 4 != 1:
                return
            self.connect(body)
            while True:
                head, body = await self.packet()
                kind = head >> 4
                if kind == 3:
                    await self.on_publish(head, body)
                elif kind == 8:
                    self.on_subscribe(body)
                elif kind == 10:
                    self.send(0xB0, body[:2] + (b"\0\0" if self.v == 5 else b""))
                elif kind == 12:
                    self.send(0xD0, b"")
                elif kind == 14:
                    break
                await self.w.drain()
        except (asyncio.IncompleteReadError, ConnectionError, Bad) as error:
            self.note("CLOSED", repr(error))
        finally:
            self.tb.sessions.discard(self)
            for device in [self.device, *self.children.values()]:
                if device and device.session is self:
                    device.session = None
            self.w.close()

    def connect(self, b: bytes) -> None:
        p = 2 + struct.unpack("!H", b[:2])[0]
        self.v, flags = b[p], b[p + 1]
        p += 4
        if self.v == 5:
            p += 1 + b[p]

        def text() -> bytes:
            nonlocal p
            length = struct.unpack("!H", b[p : p + 2])[0]
            p += 2 + length
            return b[p - length : p]

        client = text().decode()
        if flags & 4:  # a will is read and ignored
            if self.v == 5:
                p += 1 + b[p]
            text(), text()
        user = text().decode() if flags & 128 else None
        password = text() if flags & 64 else None
        if "provision" in (user, client):
            self.provisioning = True
        else:
            self.device = self.tb.by_token.get(user or "")
            if self.device is None:
                code = 5 if self.v < 5 else 0x86 if user and (password is None or client) else 0x87
                self.send(0x20, bytes([0, code]) + (b"\0" if self.v == 5 else b""))
                raise ConnectionError("not authorized")
            if (older := self.device.session) is not None:  # one session a device: the newer one has it
                if older.v == 5:
                    older.send(0xE0, b"\x8e")
                older.note("TAKEN_OVER")
                older.w.close()
            self.device.session = self
        self.note("CONNECT", f"v{self.v}", f"client={client!r}")
        present = 0 if flags & 2 else 1
        self.send(0x20, bytes([present, 0]) + (b"\0" if self.v == 5 else b""))

    def on_subscribe(self, b: bytes) -> None:
        mid, p, codes = b[:2], 2, []
        if self.v == 5:
            p += 1 + b[p]
        while p < len(b):
            length = struct.unpack("!H", b[p : p + 2])[0]
            topic, qos = b[p + 2 : p + 2 + length].decode(), min(b[p + 2 + length] & 3, 1)
            p += 3 + length
            if topic == "/provision/response" if self.provisioning else topic in FILTERS:
                self.subscribed[topic] = qos
                codes.append(qos)
            else:
                self.note("SUBSCRIBE_REFUSED", topic)
                codes.append(0x80 if self.v < 5 else 0x8F)
        self.send(0x90, mid + (b"\0" if self.v == 5 else b"") + bytes(codes))

    async def on_publish(self, head: int, b: bytes) -> None:
        length = struct.unpack("!H", b[:2])[0]
        topic, p, qos, mid = b[2 : 2 + length].decode(), 2 + length, head >> 1 & 3, 0
        if qos:
            mid = struct.unpack("!H", b[p : p + 2])[0]
            p += 2
        if self.v == 5:
            p += 1 + b[p]
        payload = b[p:]
        self.note("<-", topic, f"q{qos}", payload)
        try:
            if self.provisioning:
                self.on_provision(topic, mid, payload)
            elif not topic.startswith(GW):
                self.on_device(topic, mid, payload)
            elif self.device is not None and self.device.gateway:
                self.on_gateway(topic, mid, payload)
            else:
                self.note("GATEWAY_TOPIC_OF_A_DEVICE")  # no PUBACK at all
        except Bad as error:
            self.note("BAD", str(error))
            if self.v != 5 or not mid:
                raise
            self.ack(mid, 0x99)

    def on_device(self, topic: str, mid: int, payload: bytes) -> None:
        d = self.device
        assert d is not None
        if topic in (f"{DEV}/telemetry", "v2/t", "v2/t/j"):
            d.telemetry += points(parse(payload))
            self.ack(mid)
        elif topic in (f"{DEV}/attributes", "v2/a", "v2/a/j"):
            d.client.update(stored(parse(payload)))
            self.ack(mid)
        elif m := re.fullmatch(rf"(?:{DEV}/attributes/request/|v2/a/req/(?:j/)?)(\d+)", topic):
            self.on_attributes_request(d, topic, m[1], mid, parse(payload))
        elif m := re.fullmatch(rf"(?:{DEV}/rpc/response/|v2/r/res/(?:j/)?)(\d+)", topic):
            self.ack(mid)
            self.answer(d.name, int(m[1]), json.loads(payload))
        elif m := re.fullmatch(rf"(?:{DEV}/rpc/request/|v2/r/req/(?:j/)?)(\d+)", topic):
            self.on_call(d, m[1], mid, parse(payload))
        elif topic == f"{DEV}/claim":
            self.ack(mid)
        elif m := OTA.fullmatch(topic):
            self.on_firmware(d, m, mid, payload)
        else:
            self.note("UNKNOWN_TOPIC", topic)
            self.ack(mid, 0x90)  # under 3.1.1 an ordinary PUBACK, and the data is gone

    def on_attributes_request(self, d: Device, topic: str, number: str, mid: int, asked: Any) -> None:
        self.ack(mid)
        found = {}
        for scope, key, values in (("client", "clientKeys", d.client), ("shared", "sharedKeys", d.shared)):
            got = {k: values[k] for k in str(asked.get(key, "")).split(",") if k in values}
            if got:
                found[scope] = got
        if not asked:
            found = {scope: values for scope, values in (("client", d.client), ("shared", d.shared)) if values}
        self.publish(f"{DEV}/attributes/response/{number}" if topic.startswith(DEV) else f"v2/a/res/{number}", found)

    def on_call(self, d: Device, number: str, mid: int, asked: Any) -> None:
        self.ack(mid)
        if not isinstance(asked, dict) or "method" not in asked:
            raise Bad("method")
        if asked["method"] == "getSessionLimits" and self.tb.answers_limits:
            limits = {"maxPayloadSize": MAX, "maxInflightMessages": 100, "rateLimits": self.tb.limits}
            if d.gateway:
                limits["gatewayRateLimits"] = self.tb.limits
            self.publish(f"{DEV}/rpc/response/{number}", limits)

    def on_firmware(self, d: Device, m: re.Match[str], mid: int, payload: bytes) -> None:
        size = self.ota[m[2]] = int(payload or 0) or self.ota.get(m[2], 0)
        if size > MAX or d.firmware is None:
            self.publish("v2/fw/error", b"PAYLOAD_TOO_LARGE" if size > MAX else b"NOT_FOUND")
            raise ConnectionError("firmware")
        self.ack(mid)
        index = int(m[3])
        chunk = d.firmware[index * size : (index + 1) * size] if size else d.firmware
        self.publish(f"v2/{m[1]}/response/{m[2]}/chunk/{index}", chunk)

    def named(self, name: Any, kind: str = "default") -> Device:
        if not name:
            raise Bad("Device name is empty!")
        device = self.children[name] = self.tb.child(name, kind)
        device.session = self
        return device

    def on_gateway(self, topic: str, mid: int, payload: bytes) -> None:
        kind, told = topic[len(GW) + 1 :], parse(payload)
        if not isinstance(told, dict):
            raise Bad("Can't parse value")
        if kind == "connect":
            self.named(told["device"], told.get("type") or "default")
        elif kind == "disconnect":
            gone = self.children.pop(told["device"], None)
            if gone:
                gone.session = None
        elif kind in ("telemetry", "attributes"):
            entries = {name: one for name, one in told.items() if isinstance(one, list if kind == "telemetry" else dict)}
            if not entries:
                raise Bad("message is empty")
            for name, one in entries.items():
                if kind == "telemetry":
                    self.named(name).telemetry += points(one)
                else:
                    self.named(name).client.update(stored(one))
            if not mid:
                self.note("QOS0_ON_GATEWAY_TOPIC")
                raise ConnectionError("QoS 0 on a gateway topic")
        elif kind == "attributes/request":
            d = self.named(told["device"])
            values = d.client if told["client"] else d.shared
            keys = [told["key"]] if "key" in told else told["keys"]
            got = {key: values[key] for key in keys if key in values}
            found: dict[str, Any] = {"id": told["id"], "device": d.name}
            if len(got) == len(keys) == 1:
                found["value"] = next(iter(got.values()))
            elif got:
                found["values"] = got
            self.publish(f"{GW}/attributes/response", found)
        elif kind == "rpc":
            self.answer(told["device"], told["id"], json.loads(payload)["data"])
        elif kind != "claim":
            self.ack(mid, 0x90)
            return
        self.ack(mid)

    def answer(self, name: str, number: int, data: Any) -> None:
        waiting = self.tb.rpcs.pop((name, number), None)
        if waiting is None:
            self.note("ANSWER_TO_NOBODY", name, number)
        elif not waiting.done():
            waiting.set_result(data)

    def on_provision(self, topic: str, mid: int, payload: bytes) -> None:
        asked, tb = parse(payload), self.tb
        self.ack(mid)
        if (asked.get("provisionDeviceKey"), asked.get("provisionDeviceSecret")) != ("pk", "ps"):
            self.publish("/provision/response", {"errorMsg": "Provision data was not found!", "status": "NOT_FOUND"})
            return
        name = asked.get("deviceName") or secrets.token_hex(5)
        if name in tb.devices:
            self.publish("/provision/response", {"errorMsg": "Failed to provision device!", "status": "FAILURE"})
            return
        token = asked.get("token") or secrets.token_hex(10)
        tb.add(name, token, bool(asked.get("gateway")))
        self.publish("/provision/response", {"credentialsValue": token, "credentialsType": "ACCESS_TOKEN", "status": "SUCCESS"})

    async def attributes(self, d: Device, values: dict[str, Any]) -> None:
        if d is self.device:
            self.publish(f"{DEV}/attributes", values)
        else:
            self.publish(f"{GW}/attributes", {"device": d.name, "data": values})
        await self.w.drain()

    async def rpc(self, d: Device, number: int, method: str, params: Any) -> None:
        call = {"method": method, "params": params}
        if d is self.device:
            self.publish(f"{DEV}/rpc/request/{number}", call)
        else:
            self.publish(f"{GW}/rpc", {"device": d.name, "data": {"id": number, **call}})
        await self.w.drain()


def matches(pattern: str, topic: str) -> bool:
    a, b = pattern.split("/"), topic.split("/")
    return len(a) == len(b) and all(x in ("+", y) for x, y in zip(a, b, strict=True))
