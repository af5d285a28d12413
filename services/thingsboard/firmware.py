"""Released models as ThingsBoard's firmware of the gateway: fetched in chunks over its session, verified, told how it went."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog

from accelsim.int8 import storage
from accelsim.int8.network import Network
from services.thingsboard.core import asked, firmware
from services.thingsboard.core.firmware import CHUNK_BYTES, KEYS, Download, Firmware
from services.thingsboard.core.outbox import DEVICE, Outbox
from services.thingsboard.core.values import Value, text
from services.thingsboard.core.watched import Point
from services.thingsboard.gateway import Gateway

log = structlog.get_logger()

CHUNK_S: Final = 5.0
TRIES: Final = 12
"""Of one chunk, before the download is given up."""
CURRENT: Final = "current_fw_checksum"
"""The gateway's client attribute, by which a bridge that is started again knows what its devices were given."""
_RESPONSE = re.compile(rf"{DEVICE}/attributes/response/\d{{1,9}}")


class Firmwares:
    """The gateway's firmware. ``release`` is called when there is a new one, verified and not yet deployed."""

    def __init__(self, gateway: Gateway, outbox: Outbox, clock: Callable[[], float]) -> None:
        self.gateway = gateway
        self.outbox = outbox
        self.clock = clock
        self.held: Network | None = None
        """The network that was last verified."""
        self.fresh = asyncio.Event()
        """A firmware was announced that is not what the devices were given."""
        self._shared: dict[str, Any] = {}
        self._announced: Firmware | None = None
        self._held_of = ""
        self._given = ""
        """Checksum of what the devices were given."""
        self._tried = ""
        """Checksum of what was last released by itself, well or not."""
        self._chunks: asyncio.Queue[tuple[int, int, bytes]] = asyncio.Queue(maxsize=4)
        self._failed: str = ""
        self._fetching = asyncio.Lock()
        self._requests = itertools.count(1)
        self._last = 0

    # ---- from ThingsBoard ----

    def begin(self) -> None:
        """A new session: changes meanwhile are not said again, so ask."""
        keys = {"clientKeys": CURRENT, "sharedKeys": ",".join(KEYS)}
        self.outbox.word(f"{DEVICE}/attributes/request/{next(self._requests)}", keys)

    def take(self, topic: str, payload: bytes) -> bool:
        """A message of ThingsBoard's, if it is one for this. Raises ValueError for one that is wrong."""
        if topic == f"{DEVICE}/attributes":
            self._update(asked.decode(payload, dict[str, Any]))
        elif _RESPONSE.fullmatch(topic):
            found = asked.decode(payload, dict[str, dict[str, Any]])
            given = found.get("client", {}).get(CURRENT)
            if isinstance(given, str):
                self._given = given.removeprefix("sha256-")
            self._update(found.get("shared", {}))
        elif (chunk := firmware.RESPONSE.fullmatch(topic)) is not None:
            if len(payload) > CHUNK_BYTES:
                raise ValueError(f"a chunk of {len(payload)} bytes; {CHUNK_BYTES} were asked for")
            if not self._chunks.full():
                self._chunks.put_nowait((int(chunk[1]), int(chunk[2]), payload))
        elif topic == "v2/fw/error":
            self._failed = f"ThingsBoard says {payload[:80].decode(errors='replace')!r}"
        else:
            return False
        return True

    def _update(self, update: Mapping[str, Any]) -> None:
        self._shared |= {key: update[key] for key in KEYS if key in update}
        deleted = update.get("deleted")
        for key in deleted if isinstance(deleted, list) else ():
            self._shared.pop(key, None) if isinstance(key, str) else None
        try:
            self._announced = firmware.announced(self._shared)
        except ValueError as error:
            self._announced = None
            # Its attributes may come one by one.
            if all(key in self._shared for key in KEYS):
                self.tell("FAILED", str(error))
            return
        if self._announced is None:
            self._tried = ""
            return
        checksum = self._announced.fw_checksum.lower()
        if checksum not in (self._given, self._tried):
            # Once: where it fails ThingsBoard ends the session, and announces it again to the next one.
            self._tried = checksum
            self.fresh.set()

    # ---- to ThingsBoard ----

    def tell(self, state: str, error: str = "") -> None:
        """``fw_state``, as ThingsBoard's OTA page reads it."""
        values: dict[str, Value] = {"fw_state": state, **({"fw_error": text(error)} if error else {})}
        if self._announced is not None and state == "UPDATED":
            values["current_fw_title"] = text(self._announced.fw_title)
            values["current_fw_version"] = text(self._announced.fw_version)
            values["current_fw_checksum"] = self._announced.fw_checksum
        self._last = max(int(self.clock() * 1000), self._last + 1)
        self.outbox.add("", Point(self._last, values))
        self.gateway.wake()
        log.info("firmware", state=state, error=error)

    def given(self) -> None:
        """The devices have it."""
        if self._announced is not None:
            self._given = self._announced.fw_checksum.lower()
            self.outbox.tell("", {CURRENT: f"sha256-{self._given}"})

    async def network(self) -> Network:
        """The network of the firmware that is announced, fetched unless it is held. Raises ValueError."""
        async with self._fetching:
            wanted = self._announced
            if wanted is None:
                raise ValueError("ThingsBoard has no firmware for the gateway; assign an OTA package to it")
            if self.held is not None and self._held_of == wanted.fw_checksum:
                return self.held
            self.tell("DOWNLOADING")
            data = await self._fetch(wanted)
            self.tell("DOWNLOADED")
            try:
                found = await asyncio.to_thread(storage.from_bytes, data.verified())
            except (ValueError, msgspec.MsgspecError) as error:
                raise ValueError(f"firmware {wanted.fw_title}: {error}") from None
            self.tell("VERIFIED")
            self.held, self._held_of = found, wanted.fw_checksum
            return found

    async def _fetch(self, wanted: Firmware) -> Download:
        found, tries, self._failed = Download(wanted, next(self._requests)), 0, ""
        while not found.done:
            await asyncio.sleep(self.gateway.spacing)
            there = self.gateway.publish(found.topic, str(CHUNK_BYTES).encode())
            try:
                async with asyncio.timeout(CHUNK_S):
                    request, index, chunk = await self._chunks.get()
            except TimeoutError:
                tries += there
                if self._failed or tries == TRIES:
                    raise ValueError(f"firmware {wanted.fw_title}: {self._failed or 'its chunks do not come'}") from None
                continue
            if found.take(request, index, chunk):
                tries = 0
        return found
