"""Start a broker as a child process: Mosquitto where it is on PATH, else the embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from broker import config
from broker.accounts import Account, Role
from broker.child import dying_with_us, environment, python
from broker.config import LIMITS, Bridge, Limits, Tls
from broker.ending import stop

LETTING_GO_S = 3.0
"""How long a predecessor may take to leave its port."""
PORTS: Final = range(20000, 32768)
"""Where ports are looked for."""


class BrokerError(Exception):
    """A broker that could not be started."""


@dataclass
class Running:
    """A broker that takes connections."""

    kind: str
    """``mosquitto`` or ``embedded``."""
    host: str
    port: int
    accounts: Sequence[Account]
    tls: Tls | None
    process: asyncio.subprocess.Process
    log: IO[bytes]

    def said(self) -> str:
        """What it has written to stderr, the last 64 KiB of it."""
        start = max(0, os.fstat(self.log.fileno()).st_size - (1 << 16))
        return os.pread(self.log.fileno(), 1 << 16, start).decode(errors="replace")

    def last_words(self) -> str:
        """The last line of that."""
        return (self.said().strip().splitlines() or ["it said nothing"])[-1]

    def url(self, role: Role | None = None) -> str:
        """Where clients connect, as the account of that role. Raises ValueError where there is none."""
        scheme = "mqtts" if self.tls else "mqtt"
        who = ""
        if role is not None and self.accounts:
            account = next((a for a in self.accounts if a.role == role), None)
            if account is None:
                raise ValueError(f"this broker has no account for the role {role}")
            who = f"{quote(account.user, safe='')}:{quote(account.password, safe='')}@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{who}{host}:{self.port}"


def find_mosquitto() -> str | None:
    """The path of Mosquitto, or None. Debian keeps it where only root's PATH looks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/local/bin")


def free_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """That port, or where it is 0 any, if nobody listens on it right now: else OSError.

    Any is none of those that the system gives outgoing connections, as long as there are others: one of them, and be it a
    service's that looks for this very broker, would have the port when the broker is to be started, or started again.
    """
    if port:
        return _listening(host, port)
    others = _unasked()
    for number in random.sample(others, min(20, len(others))):
        with contextlib.suppress(OSError):
            return _listening(host, number)
    return _listening(host, 0)


def _listening(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen()
        free: int = probe.getsockname()[1]
        return free


def _unasked() -> range:
    """Ports that nobody is given who does not ask for one."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:  # not Linux, where they begin at 32768 or 49152
        first = PORTS.stop
    return range(PORTS.start, max(PORTS.start, min(PORTS.stop, first)))


@contextlib.asynccontextmanager
async def launch(
    port: int = 0,
    host: str = "127.0.0.1",
    *,
    embedded: bool | None = None,
    accounts: Sequence[Account] = (),
    tls: Tls | None = None,
    bridge: Bridge | None = None,
    plaintext: bool = False,
    limits: Limits = LIMITS,
    deadline_s: float = 60.0,
) -> AsyncIterator[Running]:
    """A broker for the time of the block; it dies with this process, however that ends.

    ``port`` 0 takes a free one; ``embedded`` None prefers Mosquitto. Only Mosquitto bridges, knows accounts, and listens where
    others reach it. Raises BrokerError with what the broker said where it does not come up, and ValueError for what
    ``config.mosquitto`` refuses.
    """
    program = None if embedded else find_mosquitto()
    if embedded is False and program is None:
        raise BrokerError("mosquitto is not on PATH; install it (apt-get install mosquitto) or use the embedded broker")
    if program is None:
        check_embedded(
            host, accounts, tls, bridge, "leave out --embedded" if embedded else "install it (apt-get install mosquitto)"
        )
    for attempt in range(5):
        try:
            # Looked at before: once it answers, there is no telling whose it is.
            chosen = await _until_free(host, port)
        except OSError as error:
            raise BrokerError(f"no broker can listen on {host}:{port}: {error.strerror}") from None
        # Its log has no name, so nothing is left of it. The files, passwords among them, are read before it listens and are
        # gone once it does.
        with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="r2f-broker-") as name:
            if program is None:
                command = python("broker", "--embedded", "--in-process", "--host", host, "--port", str(chosen))
            else:
                files = config.mosquitto(
                    Path(name), host, chosen, accounts, tls, bridge, plaintext=plaintext, limits=limits
                )  # fmt: skip
                command = [program, "-c", str(files)]
            process = await asyncio.create_subprocess_exec(
                *dying_with_us(command, signal.SIGKILL),  # a frozen one would keep its port at anything less
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                env=environment(),
            )
            running = Running("embedded" if program is None else "mosquitto", host, chosen, accounts, tls, process, log)
            try:
                failure = await _until_up(running.process, host, chosen, tls, deadline_s)
                # Somebody took that port between our look and its bind; or somebody killed it, which says nothing of it.
                passing = (port == 0 and "in use" in running.said()) or (process.returncode or 0) < 0
                if failure and passing and attempt < 4:
                    continue
                if failure:
                    raise BrokerError(f"broker on {host}:{chosen} {failure}: {running.last_words()}")
                if tls is None or tls.acl is None:  # else it is read again at SIGHUP, and holds no password
                    shutil.rmtree(name)
                yield running
                return
            finally:
                await stop(running.process)


def check_embedded(
    host: str, accounts: Sequence[Account], tls: Tls | None, bridge: Bridge | None, instead: str
) -> None:  # fmt: skip
    """Raises BrokerError for what the embedded broker cannot keep, naming Mosquitto and how to get it.

    It knows no bridges; and it publishes a last will that its sender had no right to, hands retained messages to everyone,
    and gives a session away before it knows who asks. So it has no accounts, and only this host reaches it.
    """
    if bridge is not None:
        raise BrokerError(f"only mosquitto can bridge two brokers; {instead}")
    if accounts or tls is not None:
        raise BrokerError(f"only mosquitto keeps accounts and certificates, the embedded broker does not; {instead}")
    if not config.is_loopback(host):
        raise BrokerError(f"only mosquitto may listen on {host}, where others reach it, the embedded broker may not; {instead}")


async def _until_free(host: str, port: int) -> int:
    """``free_port``, waiting a while: a broker whose launcher was killed a moment ago is still on its way out."""
    deadline = time.monotonic() + LETTING_GO_S
    while True:
        try:
            return free_port(host, port)
        except OSError:
            if port == 0 or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


async def _until_up(
    process: asyncio.subprocess.Process, host: str, port: int, tls: Tls | None, deadline_s: float
) -> str | None:
    """Wait for the port to answer; returns what went wrong, or None."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    context = None
    if tls and tls.acl is None:
        # A whole handshake, or its failure would stand in the broker's log. The certificate names the host as clients see it,
        # which need not be the address to listen on.
        context = ssl.create_default_context(cafile=str(tls.ca))
        context.check_hostname = False
    while loop.time() < deadline:
        if process.returncode is not None:
            return f"ended with {process.returncode}"
        try:
            _, writer = await asyncio.open_connection(host, port, ssl=context)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return None
    return f"did not answer within {deadline_s:g} s"
