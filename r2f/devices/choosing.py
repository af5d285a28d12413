"""Which devices a run is of: those that are named, or those that are announced on the broker and match."""

from __future__ import annotations

import asyncio
import os
from typing import NamedTuple

from r2f.settings import Settings, SettingsError
from services import devices
from services.bus import Bus, topics
from services.bus.messages import ROOT, State
from services.trainer.core.fleet import TAKEN, Fleet

QUIET_S = 1.0
"""The broker says all that is retained in one go: who is not heard by then is not there."""
LONGEST_S = 15.0


class There(NamedTuple):
    """What a broker retains of devices."""

    agents: frozenset[str]
    """Devices whose agent is there."""
    leased: frozenset[str]
    """Devices that a trainer has: another run's."""


def are_several(settings: Settings) -> bool:
    """Whether a run is of more than one device."""
    return "," in settings.device or devices.is_pattern(settings.device)


def fleet_of(settings: Settings) -> Fleet | None:
    """The devices of a run that begins, None where it is of one. Raises SettingsError where nobody matches or one is leased."""
    if not are_several(settings):
        if settings.sharing == "common":
            raise SettingsError(f"--fleet common: --device {settings.device} is one device; name several, or leave it out")
        return None
    if settings.sharing == "common" and settings.labels == "server":
        raise SettingsError("--labels server: with --fleet common each device has images of its own; take device or teacher")
    if settings.link is not None and settings.live:
        raise SettingsError("--live joins one device to the server; leave it out, or name one --device")
    pattern = devices.is_pattern(settings.device)
    if settings.broker is None or settings.launch:
        if pattern:
            raise SettingsError(
                f"--device {settings.device}: a pattern finds devices that are announced on a broker; name that with --broker, "
                "and leave out --launch, or name the devices to start with commas"
            )
        if settings.broker is None:
            return _fleet(settings, tuple(sorted(devices.listed(settings.device))))
    there = asyncio.run(look(settings.broker))
    found = devices.matching(settings.device, there.agents) if pattern else tuple(sorted(devices.listed(settings.device)))
    if pattern:  # whoever is announced under a file's name stops nobody
        found = tuple(name for name in found if not TAKEN.fullmatch(name))
    if not found:
        known = ", ".join(sorted(there.agents)[:8]) or "none at all"
        raise SettingsError(
            f"--device {settings.device}: no device that is announced on the broker matches; there are: {known}"
        )
    if len(found) > devices.MOST:
        raise SettingsError(f"--device {settings.device}: {len(found)} devices match; a run takes at most {devices.MOST}")
    for name in found:
        if name in there.leased:
            raise SettingsError(
                f"--device {name}: another run has this device, its trainer is on the broker; leave it out or wait"
            )
    return _fleet(settings, found, settings.device if pattern and settings.sharing == "common" else "")


def _fleet(settings: Settings, names: tuple[str, ...], pattern: str = "") -> Fleet:
    return Fleet(sharing=settings.sharing, devices=names, pattern=pattern, wait_s=settings.wait_s)


async def look(broker: str) -> There:
    """The devices on a broker. Raises BusError where it is out of reach."""
    heard: dict[str, set[str]] = {"agent": set(), "trainer": set()}
    async with Bus(broker, "watch", "all", passive=True, give_up_s=LONGEST_S) as bus:
        await bus.subscribe(*(f"{ROOT}/+/state/{service}" for service in heard))
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST_S
        while loop.time() < end:
            try:
                topic, message = await bus.receive(QUIET_S)
            except TimeoutError:
                break
            if isinstance(message, State):
                found, name = heard[topics.parse(topic).name], topics.parse(topic).device
                (found.add if message.online else found.discard)(name)
    return There(frozenset(heard["agent"]), frozenset(heard["trainer"]))


def hosts(settings: Settings, fleet: Fleet) -> list[tuple[str, ...]]:
    """The devices that each process of a service of theirs hosts, as evenly as can be."""
    count = settings.hosts or os.cpu_count() or 1
    return [fleet.devices[i::count] for i in range(min(count, len(fleet.devices)))]


def codecs(settings: Settings, fleet: Fleet) -> int:
    """Processes of the codec's server side that a run starts."""
    if settings.codecs is None:
        return min(os.cpu_count() or 1, len(fleet.devices)) if settings.launch else 0
    if settings.codecs == 0 and settings.launch:
        raise SettingsError("--codecs 0: with --launch somebody has to rebuild what the devices send; give 1 or more")
    return settings.codecs
