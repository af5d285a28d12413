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
from broker.address import host_port, port
from broker.launch import BrokerError, launch
from services.bus.service import Lines, end_by_sigterm

RESTARTS = 8
"""How often in a row a broker that something killed soon after its start is started again."""
FORGIVEN_S = 2.0
"""For each such time that a broker ran, once it took connections, one of its restarts is forgotten: what ends it from without
comes now and then, what ends it of itself comes at once."""


def main() -> None:
    """Parse the options, make accounts where they are asked for and missing, run until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m broker", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; one that is not loopback needs accounts")
    parser.add_argument("--port", type=port, default=1883, help="0 takes a free one")
    parser.add_argument("--embedded", action="store_true", help="amqtt even where mosquitto is installed")
    parser.add_argument("--accounts", type=Path, help="file of 'role user password [device]'; made if it is not there")
    parser.add_argument("--ca", type=Path, help="PEM of the authority, for TLS")
    parser.add_argument("--certificate", type=Path, help="PEM of this broker's certificate")
    parser.add_argument("--key", type=Path, help="PEM of its key")
    parser.add_argument(
        "--bridge-to", type=host_port, metavar="HOST:PORT", help="forward what crosses the link to that broker (Mosquitto)"
    )
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        accounts = _accounts(options.accounts)
        files = [options.ca, options.certificate, options.key]
        if any(files) and not all(files):
            raise ValueError("TLS needs --ca, --certificate and --key together")
        tls = config.Tls(*files) if all(files) else None
        if options.in_process:
            asyncio.run(embedded.serve(options.host, options.port, accounts, tls))
        else:
            bridge = None if options.bridge_to is None else config.Bridge(*options.bridge_to)
            running = _run(options.host, options.port, options.embedded, accounts, tls, bridge)
            if asyncio.run(_until_sigterm(running)):
                end_by_sigterm()
    except (BrokerError, ValueError, OSError) as error:
        sys.exit(f"broker: {error}")
    except KeyboardInterrupt:
        pass


def _accounts(path: Path | None) -> list[config.Account]:
    if path is None:
        return []
    if not path.exists():
        config.write_accounts(path, config.make_accounts())
        print(f"made accounts for device, server and watch in {path}", file=sys.stderr)
    return config.read_accounts(path)


async def _run(
    host: str,
    port: int,
    use_embedded: bool,
    accounts: list[config.Account],
    tls: config.Tls | None,
    bridge: config.Bridge | None,
) -> None:
    """Run the broker; where something ended it, start it again on the same port with the same accounts and bridge.

    Raises BrokerError with its last words where it gave up by itself, or does not stay.
    """
    restarts = 0
    while True:
        async with launch(port, host, embedded=use_embedded or None, accounts=accounts, tls=tls, bridge=bridge) as running:
            port, began = running.port, time.monotonic()
            print(f"{running.kind} on {running.url()}", file=Lines(sys.stdout), flush=True)
            code = await running.process.wait()
            if code > 0:
                raise BrokerError(f"{running.kind} ended with {code}: {running.last_words()}")
        restarts = max(0, restarts - int((time.monotonic() - began) / FORGIVEN_S)) + 1
        if restarts > RESTARTS:
            raise BrokerError(f"{running.kind} was ended {restarts} times, each soon after its start")
        how = f"was killed by {signal.Signals(-code).name}" if code else "was told to end"
        print(f"{running.kind} {how}; starting it again", file=Lines(sys.stderr), flush=True)
        await asyncio.sleep(0.1 * restarts * random.uniform(0.5, 1.5))


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
