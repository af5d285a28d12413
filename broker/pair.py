"""``python -m broker.pair FOLDER``: a server's broker, and one beside each device that a bridge joins to it, with certificates.

Makes in FOLDER, where they are not there yet, the authority, the identities ``server`` and ``watch``, one for each device, and
those of the brokers, ``server-broker`` and ``DEVICE-broker``. Renews what ends within 30 days. Into a broker's folder it writes
a ``mosquitto.conf``, in place of one that is there; run Mosquitto on it as the user that wrote it, with the folder, and beside
a device the device's own, mounted at the same path. No password is needed anywhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from broker import certificates, config
from broker.address import count, port
from broker.certificates import SOON_DAYS, Identity
from services.devices import LEVEL


def write(
    folder: Path, server_host: str, number: int, devices: Mapping[str, str], limits: config.Limits = config.LIMITS
) -> dict[str, Path]:
    """The mosquitto.conf of each broker by its name; ``devices``: to the host that the broker beside a device is called by.

    The devices' brokers dial ``server_host``. All listen on all addresses, on port ``number``. Raises ValueError for what
    cannot be issued.
    """
    folder = folder.absolute()
    wanted = [Identity("server", "server"), Identity("watch", "watch")]
    wanted += [Identity(name, "device", name) for name in devices]
    brokers = [Identity("server-broker", "broker", "+", [server_host])]
    brokers += [Identity(f"{name}-broker", "broker", name, [host]) for name, host in devices.items()]
    for who in [*wanted, *brokers]:
        _have(folder, who)
    found = {}
    for who in brokers:
        home = folder / who.name
        bridge = None if who.device == "+" else config.bridge_as(folder / who.device, server_host, number)
        (home / "mosquitto.conf").unlink(missing_ok=True)
        found[who.name] = config.mosquitto(home, "0.0.0.0", number, (), config.broker_tls(home), bridge, limits=limits)
    return found


def _have(folder: Path, who: Identity) -> None:
    """Issue that identity where there is none, renew it where it soon ends, is called otherwise now, or its files are gone or
    do not fit one another."""
    known = certificates.known(folder).get(who.name)
    if known is None:
        certificates.issue(folder, who)
        return
    if (known.kind, known.device) != (who.kind, who.device):
        raise ValueError(f"{folder}: {who.name} is a {known.kind} there, and would be a {who.kind}; take another name")
    if not known.valid:
        return  # revoked by somebody who meant it
    soon = known.valid[-1].expires - time.time() < SOON_DAYS * 86400
    if soon or known.hosts != who.hosts or certificates.misfit(folder / who.name, known.valid[-1].serial):
        certificates.renew(folder, who.name, hosts=who.hosts)


def _device(text: str) -> tuple[str, str]:
    name, equals, host = text.partition("=")
    if not equals or not LEVEL.fullmatch(name) or not host:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=HOST, the device and what its broker is called by")
    return name, host


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m broker.pair", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server-host", required=True, help="name of the server's broker, as the devices' see it")
    parser.add_argument(
        "--device", type=_device, action="append", required=True, metavar="NAME=HOST",
        help="a device, and the host that its own broker is called by; several times",
    )  # fmt: skip
    parser.add_argument("--port", type=port, default=8883)
    parser.add_argument("--memory-mb", type=count, default=config.LIMITS.memory_mb, help="that each broker takes at most, MiB")
    options = parser.parse_args()
    try:
        limits = config.Limits(memory_mb=options.memory_mb)
        paths = write(options.folder, options.server_host, options.port, dict(options.device), limits)
    except (ValueError, OSError) as error:
        sys.exit(f"broker.pair: {error}")
    print(*paths.values(), sep="\n")


if __name__ == "__main__":
    main()
