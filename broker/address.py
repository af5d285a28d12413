"""Addresses and numbers as people type them, for argparse."""

from __future__ import annotations

import argparse


def port(text: str) -> int:
    """A TCP port, 0 to 65535. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535, 0 takes a free one")
    return int(text)


def count(text: str) -> int:
    """A number from 1 to 2^20. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1 << 20):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {1 << 20}")
    return int(text)


def host_port(text: str) -> tuple[str, int]:
    """``host:port``, ``[address]:port`` for IPv6, or ``:port`` of this host. Raises ArgumentTypeError."""
    host, colon, number = text.rpartition(":")
    if not colon or len(host.split()) > 1 or (":" in host and not host.startswith("[")):
        raise argparse.ArgumentTypeError(f"{text!r} is no host:port")
    return host.strip("[]") or "127.0.0.1", port(number)
