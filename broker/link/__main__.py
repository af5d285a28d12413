"""``python -m broker.link --profile hspa --listen 127.0.0.1:1884 --connect 127.0.0.1:1883``: a slow link for real."""

from __future__ import annotations

import argparse
import asyncio
import math
import sys

from broker.address import host_port
from broker.link.profiles import PROFILES, Profile, profile
from broker.link.proxy import shape
from services.logs import Lines


def main() -> None:
    """Run the proxy until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m broker.link", description="A slow link between device and broker.")
    parser.add_argument("--profile", choices=list(PROFILES), required=True)
    parser.add_argument("--latency-ms", type=_milliseconds, default=0.0, help="one way")
    parser.add_argument("--listen", type=host_port, default="127.0.0.1:1884", help="host:port for the device")
    parser.add_argument("--connect", type=host_port, default="127.0.0.1:1883", help="host:port of the server's broker")
    options = parser.parse_args()

    async def run() -> None:
        link = profile(options.profile)
        link = Profile(link.name, link.up, link.down, options.latency_ms / 1e3)
        async with shape(link, options.connect, options.listen) as shaped:
            print(f"{link.name} on {shaped.host}:{shaped.port}", file=Lines(sys.stdout), flush=True)
            await asyncio.Event().wait()

    try:
        asyncio.run(run())
    except (OSError, ValueError) as error:
        sys.exit(f"link: {error}")
    except KeyboardInterrupt:
        pass


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no latency: milliseconds, 0 or more")
    return value


if __name__ == "__main__":
    main()
