"""``python -m broker``: run a broker in the foreground, Mosquitto where there is one."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from broker import config, embedded
from broker.launch import BrokerError, launch


def main() -> None:
    """Parse the options, make accounts where they are asked for and missing, run until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m broker", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; one that is not loopback needs accounts")
    parser.add_argument("--port", type=int, default=1883, help="0 takes a free one")
    parser.add_argument("--embedded", action="store_true", help="amqtt even where mosquitto is installed")
    parser.add_argument("--accounts", type=Path, help="file of 'role user password [device]'; made if it is not there")
    parser.add_argument("--ca", type=Path, help="PEM of the authority, for TLS")
    parser.add_argument("--certificate", type=Path, help="PEM of this broker's certificate")
    parser.add_argument("--key", type=Path, help="PEM of its key")
    parser.add_argument("--bridge-to", metavar="HOST:PORT", help="forward what crosses the link to that broker (Mosquitto)")
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
            bridge = None if options.bridge_to is None else _bridge(options.bridge_to)
            asyncio.run(_run(options.host, options.port, options.embedded, accounts, tls, bridge))
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


def _bridge(address: str) -> config.Bridge:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"--bridge-to {address!r}: expected HOST:PORT")
    return config.Bridge(host, int(port))


async def _run(
    host: str,
    port: int,
    use_embedded: bool,
    accounts: list[config.Account],
    tls: config.Tls | None,
    bridge: config.Bridge | None,
) -> None:
    async with launch(port, host, embedded=use_embedded or None, accounts=accounts, tls=tls, bridge=bridge) as running:
        print(f"{running.kind} on {running.url()}", flush=True)
        code = await running.process.wait()
        raise BrokerError(f"{running.kind} ended with {code}")


if __name__ == "__main__":
    main()
