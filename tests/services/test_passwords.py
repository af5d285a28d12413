"""Passwords come from files or the environment, identities from a folder; neither is shown to whom it does not concern."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.child import environment, python
from services import passwords
from services.bus import BusError, Tls
from services.bus.address import broker_address
from tests.services.bus.test_service import ended


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("R2F_PASSWORD", "R2F_PASSWORD_FILE", "R2F_IDENTITY", "R2F_CA_FILE", "R2F_CERT_FILE", "R2F_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_file_wins_over_the_environment_and_an_address_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passwords.found() is None
    monkeypatch.setenv("R2F_PASSWORD", "spoken")
    assert passwords.found() == "spoken"
    for text in ("written", "written\n", "written\r\n"):
        (tmp_path / "password").write_bytes(text.encode())
        monkeypatch.setenv("R2F_PASSWORD_FILE", str(tmp_path / "password"))
        assert broker_address("mqtts://me@host").password == "written"
    assert broker_address("mqtts://me:named@host").password == "named"


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"x" * 5000, b"\xff\xfe"])
def test_a_file_that_holds_no_password_is_named(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_bytes(content)
    monkeypatch.setenv("R2F_PASSWORD_FILE", str(tmp_path / "password"))
    with pytest.raises(BusError, match=r"R2F_PASSWORD_FILE is .*password'"):
        broker_address("mqtts://me@host")


@pytest.mark.parametrize(
    ("url", "has"),
    [("mqtt://me:secret@h:1", True), ("me:secret@h", True), ("mqtt://me@h:1", False), ("mqtt://h:1", False), ("h:1", False)],
)
def test_where_a_password_is(url: str, has: bool) -> None:
    assert passwords.has_password(url) is has
    assert "secret" not in passwords.hidden(url)


async def test_a_password_among_the_arguments_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for command in (
        python("services.voter", "--broker", "mqtt://me:secret@127.0.0.1:1"),
        python("services.thingsboard", "--thingsboard", "mqtt://x", "--commands", "mqtt://me:secret@127.0.0.1:1"),
        python("r2f", "tap", "--broker", "mqtt://me:secret@127.0.0.1:1"),
        python("r2f", "stop", "--broker", "mqtt://me:secret@127.0.0.1:1"),
        python("r2f", "retrain", "--broker", "mqtt://me:secret@127.0.0.1:1"),
        python("r2f", "conform", "--role", "voter", "--broker", "mqtt://me:secret@127.0.0.1:1"),
    ):
        code, said = await ended(*command)
        assert code == 2
        assert "every user of this host sees the password" in " ".join(said.replace("│", " ").split())
        assert "secret" not in said
    (tmp_path / "password").write_text("secret\n")
    options = ("--password-file", str(tmp_path / "password"), "--patience", "0.2", "--log-level", "error")
    code, said = await ended(*python("services.voter", "--broker", "mqtt://me@127.0.0.1:1", *options))
    assert (code, said.startswith("voter: broker mqtt://…@127.0.0.1:1 is unreachable")) == (1, True)
    assert environment().get("R2F_PASSWORD_FILE") is None  # of this process


def test_an_identity_is_shown_to_the_bus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ca.pem", "certificate.pem", "key.pem"):
        (tmp_path / name).write_text("")
    monkeypatch.setenv("R2F_IDENTITY", str(tmp_path))
    found = Tls().parameters()
    assert (found.ca_certs, found.certfile, found.keyfile) == tuple(
        str(tmp_path / name) for name in ("ca.pem", "certificate.pem", "key.pem")
    )
    elsewhere = Tls().parameters(bus=False)
    assert (elsewhere.ca_certs, elsewhere.certfile, elsewhere.keyfile) == (None, None, None)
    monkeypatch.setenv("R2F_CA_FILE", "other.pem")
    assert Tls().parameters().ca_certs == "other.pem"
    assert Tls().parameters().keyfile == str(tmp_path / "key.pem")
    assert Tls(ca_file="mine.pem").parameters().ca_certs == "mine.pem"
    (tmp_path / "key.pem").unlink()
    with pytest.raises(BusError, match=r"R2F_IDENTITY is .*key\.pem cannot be read; r2f provision makes such a folder"):
        Tls().parameters()
