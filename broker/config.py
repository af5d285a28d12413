"""Mosquitto's files: one listener, who may connect and do what, how much of it, and the bridge to another broker."""

from __future__ import annotations

import ipaddress
import os
import pwd
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from broker import certificates
from broker.accounts import Account, acl, hash_password, write_secret
from services.bus.encoding import PACKET_LIMIT
from services.bus.messages import ROOT

INFLIGHT: Final = 1024
"""Messages to one client that it has not acknowledged. A sender of ours has a fourth of that under way."""
QUEUED, QUEUED_BYTES = 10_000, 128 << 20
"""Behind those, to one client. What is over is dropped without a word; credit keeps a sender 64 messages of a topic ahead."""
KEEPALIVE_S: Final = 600
"""The longest silence that a client of MQTT 5 may ask for; ours speak 3.1.1 and ask for 30 s, a bridge for 60."""


class Limits(NamedTuple):
    """What all clients together may take of a broker: connections, and MiB of memory."""

    connections: int = 4096
    memory_mb: int = 2048


LIMITS: Final = Limits()


@dataclass(frozen=True)
class Tls:
    """PEM files of a listener: its certificate and key, and the authority that signed it.

    Where there is an ``acl``, clients need a certificate of that authority, too, that the list ``revoked`` does not name; its
    common name is the account that the acl has.
    """

    ca: Path
    certificate: Path
    key: Path
    acl: Path | None = None
    revoked: Path | None = None


@dataclass(frozen=True)
class Bridge:
    """The other broker, as Mosquitto's bridge sees it, and the device that the bridge is bound to, ``+`` for all.

    ``tls``: with the device's certificate, which is its account there. ``identity`` is what the other broker keeps this end's
    messages under; nobody who does not know it can take the bridge's place.
    """

    host: str
    port: int
    device: str = "+"
    tls: Tls | None = None
    identity: str = field(default_factory=lambda: secrets.token_hex(16))


def broker_tls(folder: Path) -> Tls:
    """TLS of a broker from its folder of identities, clients' certificates asked for. Raises ValueError where it is none."""
    _checked(folder, "broker")
    names = (certificates.CA, certificates.CERTIFICATE, certificates.KEY, certificates.ACL, certificates.REVOKED)
    files = [folder / name for name in names]
    for path in files:
        if not os.access(path, os.R_OK):
            raise ValueError(f"{path}: cannot be read; r2f provision broker makes it")
    return Tls(*files)


def bridge_as(folder: Path, host: str, port: int) -> Bridge:
    """A bridge with a device's identity, bound to that device. Raises ValueError where the folder is none."""
    name = _checked(folder, "device")
    files = [folder / name for name in (certificates.CA, certificates.CERTIFICATE, certificates.KEY)]
    return Bridge(host, port, name, Tls(*files))


def _checked(folder: Path, kind: str) -> str:
    told = certificates.told(folder / certificates.CERTIFICATE)
    if told.kind != kind:
        raise ValueError(f"{folder}: is the identity of a {told.kind}, {told.name}; that of a {kind} is needed here")
    if certificates.days_left(told) < 0:
        ended = f"the certificate of {told.name} ended on {told.expires:%Y-%m-%d}"
        raise ValueError(f"{folder}: {ended}; r2f provision renew {told.name} makes a new one")
    if why := certificates.misfit(folder):
        raise ValueError(
            f"{folder / certificates.KEY}: is not the key of {certificates.CERTIFICATE} beside it ({why}); "
            f"r2f provision renew {told.name} makes both anew, where {told.name} is not revoked"
        )
    return told.name


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
    if bridge.tls is not None:
        files = {"cafile": bridge.tls.ca, "certfile": bridge.tls.certificate, "keyfile": bridge.tls.key}
        lines += [f"bridge_{name} {path}" for name, path in files.items()]
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
    *,
    plaintext: bool = False,
    limits: Limits = LIMITS,
) -> Path:
    """Write mosquitto.conf and what it names into a folder, and return its path.

    Raises ValueError for an address that is not loopback without accounts or certificates to know clients by, and, unless
    ``plaintext``, for one without TLS, the bridge's as well.
    """
    check_reach(host, known=bool(accounts) or (tls is not None and tls.acl is not None), secure=tls is not None or plaintext)
    if bridge is not None and bridge.tls is None and not plaintext and not is_loopback(bridge.host):
        raise ValueError(f"a bridge to {bridge.host} without TLS can be read on the way: {_PLAINTEXT}")
    if accounts and tls is not None and tls.acl is not None:
        raise ValueError("clients are known by their certificates or by passwords: give accounts or an identity, not both")
    lines = [
        f"listener {port} {host}",
        # 18 against 362 MB/s on bursts of 64 KB.
        "set_tcp_nodelay true",
        f"max_connections {limits.connections}",
        f"memory_limit {limits.memory_mb << 20}",
        f"max_packet_size {PACKET_LIMIT + 1024}",
        f"max_inflight_messages {INFLIGHT}",
        f"max_queued_messages {QUEUED}",
        f"max_queued_bytes {QUEUED_BYTES}",
        f"max_keepalive {KEEPALIVE_S}",
        "persistence false",
        # A session that nobody comes back for; a bridge comes back within seconds, or its link is down for longer than a run.
        "persistent_client_expiration 1d",
        "sys_interval 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        f"user {pwd.getpwuid(os.geteuid()).pw_name}",
    ]
    if accounts:
        hashed = "".join(f"{a.user}:{hash_password(a.password)}\n" for a in accounts)
        write_secret(folder / "passwords", hashed)
        write_secret(folder / "acl", acl(accounts))
        lines += ["allow_anonymous false", f"password_file {folder / 'passwords'}", f"acl_file {folder / 'acl'}"]
    if tls is not None:
        lines += [f"cafile {tls.ca}", f"certfile {tls.certificate}", f"keyfile {tls.key}"]
        if tls.acl is not None:
            lines += ["require_certificate true", "use_identity_as_username true", "allow_anonymous false"]
            lines += [f"acl_file {tls.acl}", f"crlfile {tls.revoked}"]
    if not accounts and (tls is None or tls.acl is None):
        lines.append("allow_anonymous true")
    if bridge is not None:
        lines += bridge_lines(bridge)
    write_secret(folder / "mosquitto.conf", "\n".join(lines) + "\n")
    return folder / "mosquitto.conf"


_PLAINTEXT = "use certificates (r2f provision), or say --plaintext"


def check_reach(host: str, *, known: bool, secure: bool) -> None:
    """Raises ValueError for an address that others reach where clients are not known, or what they say is not protected."""
    if is_loopback(host):
        return
    if not known:
        raise ValueError(f"a broker on {host} can be reached from outside: give it --identity or --accounts")
    if not secure:
        raise ValueError(f"a broker on {host} without TLS: passwords and data can be read on the way; {_PLAINTEXT}")


def is_loopback(host: str) -> bool:
    """Whether only this host can reach that address; a name such as 127.example.org may be of any other."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
