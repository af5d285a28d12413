"""``python -m broker``: run a broker in the foreground, Mosquitto where there is one."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path

from broker import config, embedded
from broker.accounts import Account, make_accounts, read_accounts, write_accounts
from broker.address import count, host_port, port
from broker.launch import BrokerError, Running, launch
from services.bus.service import end_by_sigterm
from services.logs import Lines

RESTARTS = 8
"""How often in a row a broker that something killed soon after its start is started again."""
FORGIVEN_S = 2.0
"""For each such time that a broker ran, once it took connections, one of its restarts is forgotten: what ends it from without
comes now and then, what ends it of itself comes at once."""
FOLLOW_S = 1.0
"""How often it is looked at whether somebody was revoked."""


def main() -> None:
    """Parse the options, make accounts where they are asked for and missing, run until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m broker", description=__doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than loopback need TLS, and to know clients"
    )
    parser.add_argument("--port", type=port, default=1883, help="0 takes a free one")
    parser.add_argument("--embedded", action="store_true", help="amqtt even where mosquitto is installed; on loopback alone")
    parser.add_argument(
        "--identity", type=Path, metavar="FOLDER", help="of r2f provision broker: TLS, and clients by certificate"
    )
    parser.add_argument("--accounts", type=Path, help="file of 'role user password [device]'; made if it is not there")
    parser.add_argument("--ca", type=Path, help="PEM of the authority, for TLS with certificates of your own")
    parser.add_argument("--certificate", type=Path, help="PEM of this broker's certificate")
    parser.add_argument("--key", type=Path, help="PEM of its key")
    parser.add_argument(
        "--bridge-to", type=host_port, metavar="HOST:PORT", help="forward what crosses the link to that broker (Mosquitto)"
    )
    parser.add_argument(
        "--bridge-identity", type=Path, metavar="FOLDER", help="of r2f provision device: who the bridge is there, over TLS"
    )
    parser.add_argument(
        "--plaintext", action="store_true", help="without TLS even where others can read along, passwords included"
    )
    parser.add_argument(
        "--max-connections", type=count, default=config.LIMITS.connections, help="of all clients together [4096]"
    )
    parser.add_argument(
        "--memory-mb", type=count, default=config.LIMITS.memory_mb, help="that Mosquitto takes at most, MiB [2048]"
    )
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.in_process:
            asyncio.run(embedded.serve(options.host, options.port))
        elif asyncio.run(_until_sigterm(_run(options, _accounts(options.accounts), _tls(options), _bridge(options)))):
            end_by_sigterm()
    except (BrokerError, ValueError, OSError) as error:
        sys.exit(f"broker: {error}")
    except KeyboardInterrupt:
        pass


def _accounts(path: Path | None) -> list[Account]:
    if path is None:
        return []
    if not path.exists():
        write_accounts(path, make_accounts())
        print(f"made accounts for device, server and watch in {path}", file=sys.stderr)
    return read_accounts(path)


def _tls(options: argparse.Namespace) -> config.Tls | None:
    files = [options.ca, options.certificate, options.key]
    if options.identity is not None:
        if any(files):
            raise ValueError("--identity has the certificates; leave out --ca, --certificate and --key")
        return config.broker_tls(options.identity)
    if any(files) and not all(files):
        raise ValueError("TLS needs --ca, --certificate and --key together")
    return config.Tls(*files) if all(files) else None


def _bridge(options: argparse.Namespace) -> config.Bridge | None:
    if options.bridge_to is None:
        if options.bridge_identity is not None:
            raise ValueError("--bridge-identity: say where to, with --bridge-to HOST:PORT")
        return None
    if options.bridge_identity is not None:
        return config.bridge_as(options.bridge_identity, *options.bridge_to)
    return config.Bridge(*options.bridge_to)


async def _run(
    options: argparse.Namespace, accounts: list[Account], tls: config.Tls | None, bridge: config.Bridge | None
) -> None:
    """Run the broker; where something ended it, start it again on the same port with the same accounts and bridge.

    Raises BrokerError with its last words where it gave up by itself, or does not stay.
    """
    restarts, number = 0, options.port
    limits = config.Limits(options.max_connections, options.memory_mb)
    while True:
        async with launch(
            number, options.host, embedded=options.embedded or None, accounts=accounts, tls=tls, bridge=bridge,
            plaintext=options.plaintext, limits=limits,
        ) as running:  # fmt: skip
            number, began = running.port, time.monotonic()
            print(f"{running.kind} on {running.url()}", file=Lines(sys.stdout), flush=True)
            code = await _ended(running)
            if code > 0:
                raise BrokerError(f"{running.kind} ended with {code}: {running.last_words()}")
        restarts = max(0, restarts - int((time.monotonic() - began) / FORGIVEN_S)) + 1
        if restarts > RESTARTS:
            raise BrokerError(f"{running.kind} was ended {restarts} times, each soon after its start")
        how = f"was killed by {signal.Signals(-code).name}" if code else "was told to end"
        print(f"{running.kind} {how}; starting it again", file=Lines(), flush=True)
        await asyncio.sleep(0.1 * restarts * random.uniform(0.5, 1.5))


async def _ended(running: Running) -> int:
    """Wait for a broker's end and return its code; meanwhile it reads its lists again whenever they were written anew.

    Raises OSError where a list is gone: a broker that does not hear who is revoked had better not go on.
    """
    ending = asyncio.create_task(running.process.wait())
    lists = [] if running.tls is None else [path for path in (running.tls.acl, running.tls.revoked) if path is not None]
    before = [path.stat().st_mtime_ns for path in lists]
    try:
        while not (await asyncio.wait([ending], timeout=FOLLOW_S if lists else None))[0]:
            now = [path.stat().st_mtime_ns for path in lists]
            if now != before:
                before = now
                running.process.send_signal(signal.SIGHUP)
                print(
                    f"{running.kind}: who may connect has changed, {lists[0].parent} is read again",
                    file=Lines(),
                    flush=True,
                )
    finally:
        ending.cancel()
    return ending.result()


async def _until_sigterm(running: Coroutine[None, None, None]) -> bool:
    """Await that, or stop it in order at SIGTERM; returns whether it was SIGTERM."""
    task = asyncio.ensure_future(running)
    told = False

    def tell() -> None:
        nonlocal told
        told = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, tell)
    try:
        await task
    except asyncio.CancelledError:
        if not told:
            raise
    return told


if __name__ == "__main__":
    main()
