"""``python -m broker.pair FOLDER``: Mosquitto's files for a device's broker and a server's, joined by a bridge.

Writes ``FOLDER/device`` and ``FOLDER/server``, each to be mounted at that same path; run Mosquitto there as the user
that wrote them. Passwords come from R2F_DEVICE_PASSWORD, R2F_SERVER_PASSWORD, R2F_WATCH_PASSWORD and
R2F_BRIDGE_PASSWORD; the users are ``device`` on the one, ``server`` on the other, ``watch`` on both. Files that are there
already are replaced.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from broker import config
from broker.address import port
from broker.config import Account, Bridge


def write(folder: Path, server_host: str, port: int, passwords: dict[str, str]) -> tuple[Path, Path]:
    """The two mosquitto.conf, the device's first. ``passwords`` has device, server, watch and bridge.

    The device's broker dials ``server_host``. Both listen on all addresses, on ``port``.
    """
    device, server, watch = (Account(role, role, passwords[role]) for role in ("device", "server", "watch"))
    bridge = Account("bridge", "bridge", passwords["bridge"])
    sides = {"device": [device, watch], "server": [server, watch, bridge]}
    for name in sides:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in ("mosquitto.conf", "passwords", "acl"):
            (folder / name / old).unlink(missing_ok=True)
    dial = Bridge(server_host, port, bridge.user, bridge.password)
    return (
        config.mosquitto(folder / "device", "0.0.0.0", port, sides["device"], bridge=dial),
        config.mosquitto(folder / "server", "0.0.0.0", port, sides["server"]),
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m broker.pair", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server-host", required=True, help="name of the server's broker, as the device's sees it")
    parser.add_argument("--port", type=port, default=1883)
    options = parser.parse_args()
    names = {role: f"R2F_{role.upper()}_PASSWORD" for role in ("device", "server", "watch", "bridge")}
    missing = [name for name in names.values() if not os.environ.get(name)]
    if missing:
        sys.exit(f"broker.pair: set {', '.join(missing)}")
    spaced = [name for name in names.values() if len(os.environ[name].split()) != 1]
    if spaced or len(options.server_host.split()) != 1:
        sys.exit(f"broker.pair: {', '.join(spaced) or '--server-host'}: no blanks or line breaks; the files are read by lines")
    paths = write(options.folder, options.server_host, options.port, {role: os.environ[n] for role, n in names.items()})
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
