"""Addresses as people type them."""

from __future__ import annotations

import argparse

import pytest

from broker.address import host_port, port


def test_what_is_an_address() -> None:
    assert (port("0"), port("65535")) == (0, 65535)
    assert host_port("a.example:1883") == ("a.example", 1883)
    assert host_port(":1883") == ("127.0.0.1", 1883)
    assert host_port("[::1]:1883") == ("::1", 1883)


@pytest.mark.parametrize("text", ["", "-1", "65536", "1e3", " 1", "²", "a"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no port"):
        port(text)
    with pytest.raises(argparse.ArgumentTypeError, match="no port"):
        host_port(f"host:{text}")


@pytest.mark.parametrize("text", ["host", "::1:1", "a b:1", "a\nconnection x:1"])
def test_what_is_no_host_and_port(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no host:port"):
        host_port(text)
