"""Start a broker as a child process: Mosquitto where it is on PATH, else the embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from broker import config
from broker.config import Account, Bridge, Role, Tls

LETTING_GO_S = 3.0
"""How long a predecessor may take to leave its port."""
GRACE_S = 3.0
"""From SIGTERM to SIGKILL."""


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

    def url(self, role: Role | None = None) -> str:
        """Where clients connect, as the account of that role. Raises ValueError where there is none."""
        scheme = "mqtts" if self.tls else "mqtt"
        who = ""
        if role is not None and self.accounts:
            account = next((a for a in self.accounts if a.role == role), None)
            if account is None:
                raise ValueError(f"this broker has no account for the role {role}")
            who = f"{quote(account.user, safe='')}:{quote(account.password, safe='')}@"
        return f"{scheme}://{who}{self.host}:{self.port}"


def find_mosquitto() -> str | None:
    """The path of Mosquitto, or None. Debian keeps it where only root's PATH looks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/local/bin")


def free_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """That port, or where it is 0 any, if nobody listens on it right now: else OSError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen()
        free: int = probe.getsockname()[1]
        return free


@contextlib.asynccontextmanager
async def launch(
    port: int = 0,
    host: str = "127.0.0.1",
    *,
    embedded: bool | None = None,
    accounts: Sequence[Account] = (),
    tls: Tls | None = None,
    bridge: Bridge | None = None,
    deadline_s: float = 15.0,
) -> AsyncIterator[Running]:
    """A broker for the time of the block; it dies with this process, however that ends.

    ``port`` 0 takes a free one; ``embedded`` None prefers Mosquitto. Only Mosquitto can bridge. Raises BrokerError with
    what the broker said where it does not come up, and ValueError for an open address without accounts.
    """
    program = None if embedded else find_mosquitto()
    if embedded is False and program is None:
        raise BrokerError("mosquitto is not on PATH; install it (apt-get install mosquitto) or use the embedded broker")
    if bridge is not None and program is None:
        raise BrokerError("only mosquitto can bridge two brokers; install it (apt-get install mosquitto)")
    with tempfile.TemporaryDirectory(prefix="r2f-broker-") as name:
        folder = Path(name)
        for attempt in range(5):
            try:
                # Looked at before: once it answers, there is no telling whose it is.
                chosen = await _until_free(host, port)
            except OSError as error:
                raise BrokerError(f"no broker can listen on {host}:{port}: {error.strerror}") from None
            where = folder / str(attempt)
            where.mkdir()
            if program is not None:
                command = [program, "-c", str(config.mosquitto(where, host, chosen, accounts, tls, bridge))]
            else:
                command = _embedded_command(where, host, chosen, accounts, tls)
            path = os.pathsep.join(p for p in [_ROOT, os.environ.get("PYTHONPATH")] if p)
            with (where / "log").open("wb") as said:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "broker.child", str(os.getpid()), *command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=said,
                    env={**os.environ, "PYTHONPATH": path},
                )
            try:
                failure = await _until_up(process, host, chosen, tls, deadline_s)
                if failure and port == 0 and attempt < 4 and "in use" in (where / "log").read_text(errors="replace"):
                    continue  # somebody took that port between our look and its bind
                if failure:
                    lines = (where / "log").read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                    raise BrokerError(f"broker on {host}:{chosen} {failure}: {lines[-1]}")
                kind = "embedded" if program is None else "mosquitto"
                yield Running(kind, host, chosen, accounts, tls, process)
                return
            finally:
                await stop(process)


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


_ROOT = str(Path(__file__).resolve().parents[1])


def _embedded_command(where: Path, host: str, port: int, accounts: Sequence[Account], tls: Tls | None) -> list[str]:
    command = [sys.executable, "-m", "broker", "--embedded", "--in-process", "--host", host, "--port", str(port)]
    if accounts:
        config.write_accounts(where / "accounts", accounts)
        command += ["--accounts", str(where / "accounts")]
    if tls is not None:
        command += ["--ca", str(tls.ca), "--certificate", str(tls.certificate), "--key", str(tls.key)]
    return command


async def _until_up(
    process: asyncio.subprocess.Process, host: str, port: int, tls: Tls | None, deadline_s: float
) -> str | None:
    """Wait for the port to answer; returns what went wrong, or None."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    # A whole TLS handshake, so that its failure does not stand in the broker's log.
    context = ssl.create_default_context(cafile=str(tls.ca)) if tls else None
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


async def stop(process: asyncio.subprocess.Process) -> None:
    """End a broker: SIGTERM, and SIGKILL where that is not heard."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), GRACE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
