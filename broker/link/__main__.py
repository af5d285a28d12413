"""``python -m broker.link --profile hspa --listen 127.0.0.1:1884 --connect 127.0.0.1:1883``: a slow link for real."""

from __future__ import annotations

import argparse
import asyncio
import sys

from broker.link.profiles import PROFILES, Profile, profile
from broker.link.proxy import shape


def main() -> None:
    """Run the proxy until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m broker.link", description="A slow link between device and broker.")
    parser.add_argument("--profile", choices=list(PROFILES), required=True)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="one way")
    parser.add_argument("--listen", default="127.0.0.1:1884", help="host:port for the device")
    parser.add_argument("--connect", default="127.0.0.1:1883", help="host:port of the server's broker")
    options = parser.parse_args()

    async def run() -> None:
        link = profile(options.profile)
        link = Profile(link.name, link.up, link.down, options.latency_ms / 1e3)
        async with shape(link, _address(options.connect), _address(options.listen)) as shaped:
            print(f"{link.name} on {shaped.host}:{shaped.port}", flush=True)
            await asyncio.Event().wait()

    try:
        asyncio.run(run())
    except (OSError, ValueError) as error:
        sys.exit(f"link: {error}")
    except KeyboardInterrupt:
        pass


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"{text!r} is no host:port")
    return host or "127.0.0.1", int(port)


if __name__ == "__main__":
    main()
