"""Accounts, and what each may do.

An account has a role. A ``device`` writes ``up``, ``edge``, ``event`` and the states of its services, and reads ``down``,
``edge``, ``state``, ``event``; a ``server`` the other way round, and reads ``down`` too: the codec there follows what the
trainer asks. A ``watch`` reads everything and writes nothing. An account may be bound to one device's topics; what a device's
own broker needs to be bridged to the server's is what a device may do, so a bridge is nobody of its own.

Either side also answers, on the other's ``flow``, what is published on its own broker: the server's codec that follows
``down/forward`` asks the trainer again for what it missed, just as the device does.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from services.bus import topics
from services.bus.messages import ROOT

Role = Literal["device", "server", "watch"]

STATES: dict[str, tuple[str, ...]] = {
    "device": ("agent", "voter", "codec-device", "claim"),
    "server": ("trainer", "codec-server", "claim"),
}
"""The names on ``state`` that are of a side's services. A claim is made by either."""
WRITES: dict[str, tuple[str, ...]] = {
    "device": ("up", "edge", *(f"state/{name}" for name in STATES["device"]), "event", "down/flow"),
    "server": ("down", "server", *(f"state/{name}" for name in STATES["server"]), "event", "up/flow"),
    "watch": (),
}
READS: dict[str, tuple[str, ...]] = {
    "device": ("down", "edge", "state", "event"),
    "server": ("down", "up", "server", "state", "event"),
    "watch": ("down", "up", "edge", "server", "state", "event"),
}
"""Role to planes, or ``plane/name``, below a device."""
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
    write_secret(path, "".join(f"{a.role} {a.user} {a.password} {a.device}\n" for a in accounts))


def hash_password(password: str, salt: bytes | None = None) -> str:
    """Mosquitto's ``$7$`` form: PBKDF2-HMAC-SHA512."""
    salt = salt or secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def acl(accounts: Sequence[Account]) -> str:
    """Mosquitto's ACL file: what is not named is denied."""
    lines = []
    for account in accounts:
        lines.append(f"user {account.user}")
        for below in dict.fromkeys(WRITES[account.role] + READS[account.role]):
            access = ("read" if below in READS[account.role] else "") + ("write" if below in WRITES[account.role] else "")
            lines.append(f"topic {access} {ROOT}/{account.device}/{below}/#")
    return "\n".join(lines) + "\n"


def write_secret(path: Path, text: str) -> None:
    """A file for this user's eyes only. Raises FileExistsError rather than overwrite."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
