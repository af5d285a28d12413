"""Certificates: who is refused, what a revocation changes for one who is connected, and what is left on the disk."""

from __future__ import annotations

import asyncio
import datetime
import gc
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker import certificates, child, config
from broker.certificates import Identity
from broker.launch import find_mosquitto, launch
from r2f.cli import app
from services.bus import Bus, BusError
from services.bus.messages import Ack
from tests.security.sites import copied, files

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: only it knows certificates")
HUB = Identity("hub", "broker", "+", ["127.0.0.1"])


def provision(folder: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["provision", *arguments, "--folder", str(folder)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities that no test changes."""
    folder = tmp_path_factory.mktemp("issued") / "identities"
    for arguments in ("device pump", "device valve", "server", "watch", "broker hub --host 127.0.0.1"):
        provision(folder, *arguments.split())
    return folder


@pytest.fixture
def made(issued: Path, tmp_path: Path) -> Path:
    return copied(issued, tmp_path / "identities")


@pytest.fixture
def collected() -> Iterator[None]:
    """Collects what a test leaves while its own filters of warnings still hold."""
    yield
    gc.collect()


def refused(test: Callable[..., Any]) -> Callable[..., Any]:
    """Marks of a test whose handshakes fail: paho leaves their sockets to the garbage collector."""
    for mark in (
        pytest.mark.usefixtures("collected"),
        pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
        needs_mosquitto,
    ):
        test = mark(test)
    return test


async def enter(url: str, home: Path, **options: str) -> None:
    async with Bus(url, "agent", "pump", tls=files(home)._replace(**options), give_up_s=5) as bus:
        await bus.flush()


@refused
async def test_who_does_not_get_in(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    certificates.issue(other, Identity("pump", "device", "pump"))
    monkeypatch.setattr(certificates, "_now", lambda: datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=40))
    certificates.issue(made, Identity("late", "device", "late"), days=39)
    monkeypatch.undo()
    certificates.issue(made, Identity("gone", "device", "gone"))
    certificates.revoke(made, "gone")
    async with launch(tls=config.broker_tls(made / "hub")) as running:
        url = running.url()
        await enter(url, made / "pump")
        for name, said in (
            ("late", "certificate expired"),
            ("gone", "certificate revoked"),
            ("hub", "unsupported certificate"),
        ):
            with pytest.raises(BusError, match=f"does not take our certificate .{said}.: R2F_IDENTITY"):
                await enter(url, made / name)
        with pytest.raises(BusError, match="unknown ca"):
            await enter(url, other / "pump", ca_file=str(made / "pump" / "ca.pem"))
        with pytest.raises(BusError, match=r"no certificate that we trust.*; R2F_IDENTITY or R2F_CA_FILE has"):
            await enter(url, other / "pump")
        monkeypatch.setenv("R2F_IDENTITY", str(tmp_path / "nowhere"))
        with pytest.raises(BusError, match=r"R2F_IDENTITY is .*nowhere.: .*ca.pem cannot be read"):
            async with Bus(url, "agent", "pump", give_up_s=5):
                pass


@refused
async def test_nobody_is_a_broker_with_a_clients_certificate(made: Path) -> None:
    """And a broker is none for another host than its own."""
    stolen = config.Tls(*(made / "valve" / name for name in ("ca.pem", "certificate.pem", "key.pem")))
    async with launch(host="127.0.0.2", tls=config.broker_tls(made / "hub")) as elsewhere:
        with pytest.raises(BusError, match=r"no certificate that we trust.*127\.0\.0\.2"):
            await enter(elsewhere.url(), made / "pump")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c",
        "import ssl, socket, sys\n"
        "tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); tls.load_cert_chain(*sys.argv[1:])\n"
        "listening = tls.wrap_socket(socket.create_server(('127.0.0.1', 0)), server_side=True)\n"
        "print(listening.getsockname()[1], flush=True)\n"
        "try: listening.accept()\nexcept OSError: pass",
        str(stolen.certificate), str(stolen.key), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    with pytest.raises(BusError, match=r"no certificate that we trust.*unsuitable certificate purpose"):
        await enter(f"mqtts://127.0.0.1:{port}", made / "pump")
    await process.wait()


@needs_mosquitto
async def test_whoever_is_revoked_while_connected_says_and_hears_nothing_more(made: Path) -> None:
    """``python -m broker`` notices by itself; the others go on undisturbed, and a renewed certificate is let in."""
    command = [*child.python("broker"), "--identity", str(made / "hub"), "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, env=child.environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        url = (await process.stdout.readline()).split()[-1].decode()
        async with (
            Bus(url, "trainer", "pump", tls=files(made / "server")) as trainer,
            Bus(url, "trainer", "valve", tls=files(made / "server")) as of_valve,
            Bus(url, "agent", "pump", tls=files(made / "pump")) as pump,
            Bus(url, "agent", "valve", tls=files(made / "valve")) as valve,
        ):
            await trainer.subscribe("up/ack", "event/forward")
            await of_valve.subscribe("up/ack")
            await pump.subscribe("event/#")
            provision(made, "revoke", "pump")
            assert b"who may connect has changed" in await process.stderr.readline()
            async with asyncio.timeout(60):
                for seq in itertools.count():  # the broker has been told, and needs a moment
                    await pump.publish("up/ack", Ack(session="s", of="mode", seq=seq, ok=True))
                    await pump.flush()
                    async with trainer.timing("s", "forward", seq):
                        pass
                    if (await trainer.receive())[0] == "r2f/v1/pump/event/forward":
                        break  # and not what pump said before
                    await trainer.receive()
            await valve.publish("up/ack", Ack(session="s", of="mode", seq=2, ok=True))
            _, message = await of_valve.receive(60)
            assert isinstance(message, Ack)
            while True:  # what was under way
                try:
                    await pump.receive(0.2)
                except TimeoutError:
                    break
            async with trainer.timing("s", "forward", 1):
                pass
            with pytest.raises(TimeoutError):
                await pump.receive(0.2)
            with pytest.raises(BusError, match="certificate revoked"):
                await enter(url, made / "pump")
            old = (made / "pump" / "key.pem").read_bytes()
            provision(made, "device", "pump")
            assert (made / "pump" / "key.pem").read_bytes() != old
            assert b"read again" in await process.stderr.readline()
            await pump.__aexit__(None, None, None)
            await enter(url, made / "pump")
            assert of_valve.counts["reconnected"] == 0
    finally:
        process.terminate()
        await process.wait()


@needs_mosquitto
async def test_a_renewed_certificate_and_the_one_before_both_hold_until_that_is_revoked(made: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    for path in (made / "pump").iterdir():
        (before / path.name).write_bytes(path.read_bytes())
    provision(made, "renew", "pump", "--days", "20")
    async with launch(tls=config.broker_tls(made / "hub")) as running:
        await enter(running.url(), before)
        await enter(running.url(), made / "pump")
    assert re.search(r"(19|20) days: renew it; 1 older not revoked", certificates.state(certificates.known(made)["pump"]))
    assert "pump: 1 certificate revoked" in provision(made, "revoke", "pump", "--old")
    async with launch(tls=config.broker_tls(made / "hub")) as running:
        with pytest.raises(BusError, match="certificate revoked"):
            await enter(running.url(), before)
        await enter(running.url(), made / "pump")


def test_keys_are_for_their_owner_alone_and_no_two_are_the_same(made: Path) -> None:
    found = [path for path in made.rglob("*") if path.is_file()]
    assert {path.name for path in found} == {
        "ca.key", "ca.pem", "issued.json", "revoked.pem", "lock", "certificate.pem", "key.pem", "acl",
    }  # fmt: skip
    assert [path for path in [made, *made.rglob("*")] if path.stat().st_mode & 0o077] == []
    keys = [path.read_bytes() for path in found if path.suffix == ".key" or path.name == "key.pem"]
    assert len(set(keys)) == len(keys) == 6
    assert list((made / "pump").glob("*.key")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("device pump", "pump has a certificate of a device already; renew it, or revoke it first"),
        ("server pump", "pump has a certificate of a device already"),
        ("device a/b", "'a/b' is no name"),
        ("device authority", "is the folder of the authority itself"),
        ("device x --days 0", "0 days: a certificate holds from 1 to 3650"),
        ("device x --days 3650", "the authority itself ends on"),
        ("device x --days many", "unable to parse string as an integer"),
        ("broker b --host a_b/c", "neither an address nor a host's name"),
        ("broker b", "Missing option '--host'"),
        ("watch w --device a,b", "'a,b' is no device"),
        ("renew nobody", "nothing was issued to 'nobody'; there are pump"),
        ("revoke nobody", "nothing was issued to 'nobody'"),
        ("revoke pump --old", "pump has no older certificate that is believed"),
        ("broker b --host h --device never", "--device never: no device of that name has a certificate"),
        ("broker b --host h --device server", "--device server: no device of that name has a certificate"),
    ],
)
def test_what_cannot_be_issued_is_one_line(issued: Path, arguments: str, said: str) -> None:
    before = (issued / "authority" / "issued.json").read_bytes()
    result = CliRunner().invoke(app, ["provision", *arguments.split(), "--folder", str(issued)])
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.output.replace("│", " ").split())
    assert (issued / "authority" / "issued.json").read_bytes() == before


def test_who_is_revoked_is_not_revoked_again_nor_given_a_broker(made: Path) -> None:
    provision(made, "revoke", "pump")
    for arguments, said in (("revoke pump", "pump is revoked already"), ("broker b --host h --device pump", "--device pump")):
        result = CliRunner().invoke(app, ["provision", *arguments.split(), "--folder", str(made)])
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert said in result.stderr
    provision(made, "broker", "b", "--host", "h", "--device", "valve")


def test_the_first_one_says_that_it_made_the_authority(tmp_path: Path) -> None:
    folder = tmp_path / "identities"
    refused = CliRunner().invoke(app, f"provision broker b --host h --device pump --folder {folder}".split())
    assert refused.exit_code == 1
    assert not folder.exists()
    first, second = (
        CliRunner().invoke(app, ["provision", *kind, "--folder", str(folder)]) for kind in (["device", "pump"], ["server"])
    )
    assert f"made a private authority in {folder / 'authority'}" in first.stderr
    assert (first.stdout, second.output) == (f"{folder / 'pump'}\n", f"{folder / 'server'}\n")
    assert "+ is every device" in provision(folder, "list")


def test_what_is_damaged_or_missing_is_said(made: Path) -> None:
    (made / "authority" / "ca.key").rename(made / "ca.key")
    result = CliRunner().invoke(app, ["provision", "revoke", "pump", "--folder", str(made)])
    assert "without the authority's key nothing can be issued or revoked" in result.output
    (made / "authority" / "issued.json").write_text("{")
    result = CliRunner().invoke(app, ["provision", "list", "--folder", str(made)])
    assert "issued.json: is damaged" in result.output
    for path, said in ((made / "none", "No such file"), (made / "pump", "is the identity of a device, pump; that of a broker")):
        with pytest.raises(ValueError, match=said):
            config.broker_tls(path)
    (made / "hub" / "certificate.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(ValueError, match="is no certificate of r2f provision"):
        config.broker_tls(made / "hub")


def test_a_certificate_holds_on_its_last_day(tmp_path: Path) -> None:
    certificates.issue(tmp_path, Identity("hub", "broker", hosts=["localhost"]), days=1)
    assert config.broker_tls(tmp_path / "hub").certificate == tmp_path / "hub" / certificates.CERTIFICATE


def test_a_broker_does_not_start_with_what_a_renewal_that_was_cut_off_left(tmp_path: Path) -> None:
    home = certificates.issue(tmp_path, Identity("hub", "broker", hosts=["localhost"]))
    before = (home / certificates.CERTIFICATE).read_bytes()
    certificates.renew(tmp_path, "hub")
    (home / certificates.CERTIFICATE).write_bytes(before)  # as where it was killed between key and certificate
    with pytest.raises(ValueError, match=r"key\.pem: is not the key of certificate\.pem .*; r2f provision renew hub makes"):
        config.broker_tls(home)
    certificates.renew(tmp_path, "hub")
    assert config.broker_tls(home).key == home / certificates.KEY


def test_a_broker_does_not_start_with_a_certificate_that_ended(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_now", lambda: datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=366))
    with pytest.raises(ValueError, match=r"the certificate of hub ended on .*; r2f provision renew hub makes a new one"):
        config.broker_tls(made / "hub")


def test_several_may_be_issued_at_once(made: Path) -> None:
    """None forgets what another wrote: a lock is of an open file, not of a process."""
    names = [f"unit-{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: certificates.issue(made, Identity(name, "device", name)), names))
    assert set(names) <= set(certificates.read(made).identities)
    assert all(f"user {name}\n" in (made / "hub" / "acl").read_text() for name in names)
