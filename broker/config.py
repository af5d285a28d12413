"""Accounts, what each may do, and Mosquitto's files made from that.

An account has a role. A ``device`` writes ``up``, ``edge``, ``state``, ``event`` and reads ``down``, ``edge``, ``state``; a
``server`` the other way round, and reads ``down`` too: the codec there follows what the trainer asks. A ``watch`` reads
everything and writes nothing; a ``bridge`` joins two brokers. A device account may be bound to one device's topics.

Either side also answers, on the other's ``flow``, what is published on its own broker: the server's codec that follows
``down/forward`` asks the trainer again for what it missed, just as the device does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import pwd
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from services.bus import topics
from services.bus.encoding import PACKET_LIMIT
from services.bus.messages import ROOT

Role = Literal["device", "server", "watch", "bridge"]

WRITES: dict[str, tuple[str, ...]] = {
    "device": ("up", "edge", "state", "event", "down/flow"),
    "server": ("down", "server", "state", "event", "up/flow"),
    "watch": (),
    "bridge": ("up", "down", "state", "event"),
}
READS: dict[str, tuple[str, ...]] = {
    "device": ("down", "edge", "state"),
    "server": ("down", "up", "server", "state", "event"),
    "watch": ("down", "up", "edge", "server", "state", "event"),
    "bridge": ("up", "down", "state", "event"),
}
BRIDGED = ("up", "down", "state", "event")
_ITERATIONS = 101  # Mosquitto's own; the passwords we make have 144 bits


@dataclass(frozen=True)
class Account:
    """A user, and the device it is bound to (``+`` for all)."""

    role: Role
    user: str
    password: str
    device: str = "+"


def patterns(account: Account, planes: Sequence[str]) -> list[str]:
    """The topic patterns of some planes as that account sees them."""
    return [f"{ROOT}/{account.device}/{plane}/#" for plane in planes]


def make_accounts(roles: Sequence[Role] = ("device", "server", "watch")) -> list[Account]:
    """One account a role, named as the role, with a random password."""
    return [Account(role, role, secrets.token_urlsafe(18)) for role in roles]


def read_accounts(path: Path) -> list[Account]:
    """Lines of ``role user password [device]``; # starts a comment. Raises ValueError naming the line that is none."""
    accounts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) not in (3, 4) or words[0] not in get_args(Role) or ":" in words[1]:
            raise ValueError(f"{path}:{number}: write 'role user password [device]', role one of {get_args(Role)}")
        try:
            topics.build(words[3] if words[3:] and words[3] != "+" else "any", "up", "any")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        accounts.append(Account(words[0], words[1], words[2], *words[3:]))  # type: ignore[arg-type]
    if not accounts:
        raise ValueError(f"{path} names no account")
    return accounts


def write_accounts(path: Path, accounts: Sequence[Account]) -> None:
    """What ``read_accounts`` reads, for this user's eyes only. Raises FileExistsError rather than overwrite."""
    _write_secret(path, "".join(f"{a.role} {a.user} {a.password} {a.device}\n" for a in accounts))


def hash_password(password: str, salt: bytes | None = None) -> str:
    """Mosquitto's ``$7$`` form: PBKDF2-HMAC-SHA512."""
    salt = salt or secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def password_is(password: str, hashed: str) -> bool:
    """Whether a ``hash_password`` was made from that password."""
    return hmac.compare_digest(hash_password(password, base64.b64decode(hashed.split("$")[3])), hashed)


def acl(accounts: Sequence[Account]) -> str:
    """Mosquitto's ACL file: what is not named is denied."""
    lines = []
    for account in accounts:
        lines.append(f"user {account.user}")
        for plane in dict.fromkeys(WRITES[account.role] + READS[account.role]):
            access = ("read" if plane in READS[account.role] else "") + ("write" if plane in WRITES[account.role] else "")
            lines.append(f"topic {access} {ROOT}/{account.device}/{plane}/#")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Tls:
    """PEM files of a listener: its certificate and key, and the authority that signed it."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Bridge:
    """The other broker, as Mosquitto's bridge sees it. ``ca``: of a broker that speaks TLS.

    ``identity`` is what the other broker knows this end by and keeps its messages under, so a bridge that is started again
    has the same one.
    """

    host: str
    port: int
    user: str = ""
    password: str = ""
    device: str = "+"
    ca: Path | None = None
    identity: str = field(default_factory=lambda: secrets.token_hex(4))


def bridge_lines(bridge: Bridge, name: str = "r2f") -> list[str]:
    """The bridge section, written on the device's broker: ``up`` out, ``down`` in, ``state`` and ``event`` both ways.

    Nothing else crosses. QoS 1, and what waits for the link is kept while it is away.
    """
    lines = [
        f"connection {name}",
        f"address {bridge.host}:{bridge.port}",
        "bridge_protocol_version mqttv311",
        "cleansession false",
        "try_private true",
        "notifications false",
        "restart_timeout 1 10",
        "keepalive_interval 60",
        f"remote_clientid {name}-{bridge.device.replace('+', 'all')}-{bridge.identity}",
    ]
    if bridge.user:
        lines += [f"remote_username {bridge.user}", f"remote_password {bridge.password}"]
    if bridge.ca is not None:
        lines += [f"bridge_cafile {bridge.ca}"]
    for plane, direction in (("up", "out"), ("down", "in"), ("state", "both"), ("event", "both")):
        lines.append(f"topic {ROOT}/{bridge.device}/{plane}/# {direction} 1")
    return lines


def mosquitto(
    folder: Path,
    host: str,
    port: int,
    accounts: Sequence[Account] = (),
    tls: Tls | None = None,
    bridge: Bridge | None = None,
) -> Path:
    """Write mosquitto.conf and what it names into a folder, and return its path.

    Without accounts anyone may connect, so only a loopback address is taken: else ValueError.
    """
    if not accounts and not is_loopback(host):
        raise ValueError(f"a broker on {host} can be reached from outside: give it accounts")
    lines = [
        f"listener {port} {host}",
        # 18 against 362 MB/s on bursts of 64 KB.
        "set_tcp_nodelay true",
        f"max_packet_size {PACKET_LIMIT + 1024}",
        # What is over the queue is dropped without a word. Credit keeps a sender 64 messages ahead, so this is ample.
        "max_queued_messages 100000",
        "max_inflight_messages 0",
        "persistence false",
        "sys_interval 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        f"user {pwd.getpwuid(os.geteuid()).pw_name}",
    ]
    if accounts:
        hashed = "".join(f"{a.user}:{hash_password(a.password)}\n" for a in accounts)
        _write_secret(folder / "passwords", hashed)
        _write_secret(folder / "acl", acl(accounts))
        lines += ["allow_anonymous false", f"password_file {folder / 'passwords'}", f"acl_file {folder / 'acl'}"]
    else:
        lines.append("allow_anonymous true")
    if tls is not None:
        lines += [f"cafile {tls.ca}", f"certfile {tls.certificate}", f"keyfile {tls.key}"]
    if bridge is not None:
        lines += bridge_lines(bridge)
    _write_secret(folder / "mosquitto.conf", "\n".join(lines) + "\n")
    return folder / "mosquitto.conf"


def is_loopback(host: str) -> bool:
    """Whether only this host can reach that address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _write_secret(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
