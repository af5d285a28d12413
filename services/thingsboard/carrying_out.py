"""What ThingsBoard asks, carried out on the bus with the server's half of Table I, while no run has the device.

The trainer's name is the device's lease: a command takes it for as long as it lasts. A run's trainer that was killed is started
again within seconds, so a device counts as a run's for a while longer.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import numpy as np
import structlog
import xxhash

from accelsim.int8 import storage
from accelsim.int8.network import Network
from services.bus import Bus, BusError
from services.bus.messages import Ack, SetMode, Timing
from services.scheme import check
from services.thingsboard.bridge import Bridge
from services.thingsboard.core import asked
from services.thingsboard.core.asked import DeployModel, GetData, SetAIoTMode, Setting
from services.thingsboard.firmware import Firmwares
from services.thingsboard.models import Models
from services.trainer.answers import Data
from services.trainer.table1 import Mode, Server, serving

log = structlog.get_logger()

QUIET_S: Final = 30.0
"""Since a trainer was last seen, until its device is nobody's."""
HEARD_S: Final = 3.0
ANSWER_S: Final = 5.0
"""For the device to acknowledge a mode."""
PATIENCE_S, ATTEMPTS = 10.0, 2
EVENTS_S: Final = 0.3
"""For the events of a pass that is over to arrive."""
VERSIONS: Final = 64
"""That are remembered of a device."""


class NotDone(ValueError):
    """A command that was not carried out, and why."""


class Carrier:
    """Carries out commands, a device at a time. One session of its own for what needs a network deployed."""

    def __init__(self, bridge: Bridge, broker: str, models: Models, firmwares: Firmwares) -> None:
        self.bridge = bridge
        self.broker = broker
        self.models = models
        self.firmwares = firmwares
        self.session = f"thingsboard-{secrets.token_hex(4)}"
        self.deployed: dict[str, tuple[int, Network]] = {}
        """The newest version of this session on each device."""
        self._versions: dict[str, dict[int, str]] = {}
        self._bytes: dict[tuple[str, int], int] = {}
        """On the link, by device and iteration of this session, while a pass runs."""

    # ---- the lease ----

    @asynccontextmanager
    async def _lease(self, device: str, session: str) -> AsyncIterator[Bus]:
        seen = self.bridge.devices[device].trainer_seen
        if time.monotonic() - seen < QUIET_S:
            raise NotDone(f"a run has {device}, or had it less than {QUIET_S:g} s ago; ask again when it is done")
        try:
            bus = Bus(
                self.broker,
                "trainer",
                device,
                session=session,
                yields=True,  # to a run that starts meanwhile
                readers=("codec-server",),
                give_up_s=HEARD_S,
            )
            self.bridge.own[device] = bus.origin  # what is heard of it is no run's
            async with bus:
                yield bus
        except BusError as error:
            raise NotDone(str(error)) from None

    def setting(self, device: str) -> tuple[str, int, Setting]:
        """Session, sequence number and setting that the device was last told, or what a device is without a word."""
        return self.bridge.settings.get(device, (self.session, 0, Setting()))

    # ---- commands ----

    async def set_mode(self, device: str, setting: Setting) -> dict[str, Any]:
        """``setAIoTMode``, in the session that the device is in, so that it keeps its network. Raises NotDone."""
        session, seq, _ = self.setting(device)
        if device in self.deployed:
            try:
                check(setting.scheme, self.deployed[device][1])
            except ValueError as error:
                raise NotDone(str(error)) from None
        message = SetMode(
            session=session, seq=seq + 1, mode=setting.mode, rates=setting.rates, seed=setting.seed, scheme=setting.scheme,
            known=setting.known,
        )  # fmt: skip
        async with self._lease(device, session) as bus:
            await bus.subscribe("up/ack")
            await bus.publish("down/mode", message, retain=True)
            answer = await _acknowledged(bus, message.seq)
        if answer is None:
            raise NotDone(f"{device} did not answer within {ANSWER_S:g} s; is its agent there?")
        if not answer.ok:
            raise NotDone(f"{device} refused: {answer.error[:500]}")
        self.bridge.settings[device] = (session, message.seq, setting)
        return {"ok": True, "seq": message.seq}

    async def deploy(self, device: str, wanted: DeployModel) -> dict[str, Any]:
        """``deployModel``. Raises NotDone, ValueError for a network that there is not."""
        network = await self._network(device, wanted)
        return await self.deploy_network(device, network)

    async def deploy_network(self, device: str, network: Network) -> dict[str, Any]:
        """A network onto a device, as the next version of this session. Raises NotDone."""
        digest = storage.digest(network)
        version = max(self._versions.get(device, {0: ""})) + 1
        async with self._server(device) as server:
            await self._enter(server, device)
            await server.deploy_model(device, network, version=version)
        self.deployed[device] = (version, network)
        versions = self._versions.setdefault(device, {})
        versions[version] = digest
        if len(versions) > VERSIONS:
            del versions[min(versions)]
        return {"ok": True, "version": version, "sha256": f"sha256-{digest}"}

    async def _network(self, device: str, wanted: DeployModel) -> Network:
        if wanted.ota:
            return await self.firmwares.network()
        sha256 = wanted.sha256
        if sha256 is None:
            versions = self._versions.get(device, {})
            if wanted.version not in versions:
                raise NotDone(f"version {wanted.version} of {device} was not deployed by this bridge")
            sha256 = versions[wanted.version]
            held = self.firmwares.held
            if held is not None and storage.digest(held) == sha256:
                return held
        return await asyncio.to_thread(self.models.find, sha256)

    async def get_data(self, device: str, wanted: GetData) -> dict[str, Any]:
        """``getData``: what the device computed, in shapes, digests and classes. Raises NotDone."""
        if device not in self.deployed:
            raise NotDone(f"no network was deployed to {device} by this bridge; call deployModel first")
        version, network = self.deployed[device]
        of = (device, wanted.iteration)
        self._bytes[of] = 0
        try:
            async with self._server(device) as server:
                await self._enter(server, device)
                await server.deploy_model(device, network, version=version)
                data = await server.get_data(
                    device, iteration=wanted.iteration, split=wanted.split, samples=wanted.samples
                )  # fmt: skip
                await asyncio.sleep(EVENTS_S)
                return {"ok": True, "iteration": wanted.iteration, "version": version} | _told(data, network, self._bytes[of])
        finally:
            del self._bytes[of]

    def heard(self, device: str, timing: Timing) -> None:
        """Notes the bytes of a pass of this session."""
        of = (device, timing.iteration)
        if timing.session == self.session and of in self._bytes:
            self._bytes[of] += timing.bytes

    @asynccontextmanager
    async def _server(self, device: str) -> AsyncIterator[Server]:
        async with (
            self._lease(device, self.session) as bus,
            serving(bus, self.session, patience=PATIENCE_S, attempts=ATTEMPTS) as server,
        ):
            await server.ready(device, HEARD_S)
            yield server

    async def _enter(self, server: Server, device: str) -> None:
        """Tell the device, in this session, the setting that it has."""
        _, _, now = self.setting(device)
        await server.set_mode(
            device, Mode(now.mode), rates=now.rates, seed=now.seed, scheme=now.scheme, known=now.known
        )  # fmt: skip


async def _acknowledged(bus: Bus, seq: int) -> Ack | None:
    """The device's answer to a mode, None where there is none in time."""
    try:
        async with asyncio.timeout(ANSWER_S):
            async for _, message in bus:
                if isinstance(message, Ack) and (message.of, message.seq) == ("mode", seq):
                    return message
    except TimeoutError:
        pass
    return None


def _told(data: Data, network: Network, link: int) -> dict[str, Any]:
    """What of a pass goes to ThingsBoard: never a tensor. Digests are xxh3-64 of NHWC bytes, as on the link."""
    last = len(network.layers) - 1
    outputs = data.outputs if data.outputs is not None else data.activations.get(last)
    tensors = {"images": data.images, "outputs": data.outputs} | {str(i): y for i, y in sorted(data.activations.items())}
    told: dict[str, Any] = {
        "bytes": data.outputs.nbytes if data.outputs is not None else link,
        "mismatched": data.mismatched,
        "tensors": {
            name: {"shape": list(y.shape), "digest": f"xxh3-{xxhash.xxh3_64_hexdigest(y.tobytes())}"}
            for name, y in tensors.items()
            if y is not None
        },
    }
    if outputs is not None:
        top1 = outputs.reshape(len(outputs), -1).argmax(axis=1)
        told["top1"] = top1.tolist()
        if data.labels is not None:
            told["right"] = int(np.count_nonzero(top1 == data.labels))
    return told


def wanted(call: asked.Call) -> SetAIoTMode | DeployModel | GetData:
    """What a call asks for. Raises ValueError for one that is wrong, LookupError for a method that there is not."""
    kinds: dict[str, Any] = {"setAIoTMode": SetAIoTMode, "deployModel": DeployModel, "getData": GetData}
    if call.method not in kinds:
        raise LookupError(f"no method {call.method!r}; there are {', '.join(kinds)}")
    found: SetAIoTMode | DeployModel | GetData = asked.parameters(call.params, kinds[call.method], call.method)
    return found
