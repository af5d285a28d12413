"""Who somebody is: a private authority, one certificate for each device, server side and broker, and the list of revoked ones.

A folder of identities has a folder for each name, to be taken to the machine that has it:

- ``authority/``: ``ca.key``, which stays here and makes everything, ``ca.pem``, and ``issued.json``, what was ever issued;
- ``NAME/``: ``ca.pem``, ``certificate.pem``, ``key.pem``; a broker's has ``acl`` and ``revoked.pem`` too, written anew
  whenever somebody is issued a certificate or loses it.

The common name of a certificate is the account's user name, its organisational unit the role. Files are for their owner alone.
"""

from __future__ import annotations

import datetime
import fcntl
import ipaddress
import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from accelsim.files import write_whole
from broker.accounts import Account, acl
from services.devices import LEVEL

Kind = Literal["device", "server", "watch", "broker"]

AUTHORITY = "authority"
CA, CA_KEY, CERTIFICATE, KEY, ACL, REVOKED, ISSUED = (
    "ca.pem", "ca.key", "certificate.pem", "key.pem", "acl", "revoked.pem", "issued.json",
)  # fmt: skip
DAYS = 365
AUTHORITY_DAYS = 3650
MOST_DAYS = 3650
SOON_DAYS = 30
"""Less than that, and a certificate is to be renewed."""
_BACKDATED = datetime.timedelta(minutes=10)
"""A device's clock may be behind by that much and still believe a certificate that was made just now."""


class Certificate(msgspec.Struct):
    """One that was issued. ``serial`` in hexadecimal, ``expires`` in Unix seconds."""

    serial: str
    expires: int
    revoked: bool = False


class Identity(msgspec.Struct):
    """A name, what it is, and its certificates, the newest last.

    ``device``: whose topics it may use, ``+`` for all; of a broker, whose broker it is. ``hosts``: by which a broker is called.
    """

    name: str
    kind: Kind
    device: str = "+"
    hosts: list[str] = []
    certificates: list[Certificate] = []

    @property
    def valid(self) -> list[Certificate]:
        """Those that were not revoked."""
        return [one for one in self.certificates if not one.revoked]


class Ledger(msgspec.Struct):
    """All that an authority has issued, by name."""

    identities: dict[str, Identity] = {}


class Told(NamedTuple):
    """What a certificate says of its owner."""

    name: str
    kind: str
    expires: datetime.datetime


def issue(folder: Path, who: Identity, days: int = DAYS) -> Path:
    """A certificate for somebody new, or for a name whose certificates are all revoked.

    The authority is made where there is none. Returns the identity's folder. Raises ValueError for what cannot be issued.
    """
    _check(who, days)
    if who.kind == "broker" and who.device != "+":
        of = known(folder).get(who.device)
        if of is None or of.kind != "device" or not of.valid:
            raise ValueError(
                f"{who.name}: --device {who.device}: no device of that name has a certificate in {folder}, so nobody could use "
                f"its broker; r2f provision device {who.device} first"
            )
    with _locked(folder, create=True) as ledger:
        same = ledger.identities.get(who.name)
        if same is not None and same.valid:
            raise ValueError(
                f"{folder / who.name}: {who.name} has a certificate of a {same.kind} already; renew it, or revoke it first"
            )
        before = [] if same is None else same.certificates
        ledger.identities[who.name] = msgspec.structs.replace(who, certificates=list(before))
        return _give(folder, ledger, ledger.identities[who.name], days)


def renew(folder: Path, name: str, days: int = DAYS, hosts: Sequence[str] | None = None) -> Path:
    """A new key and certificate for a name, in its folder. The one before is believed until it expires or is revoked.

    ``hosts``: by which a broker is called from now on. Raises ValueError for a name that has none.
    """
    with _locked(folder) as ledger:
        who = _known(folder, ledger, name)
        if hosts is not None:
            who.hosts = list(hosts)
        _check(who, days)
        if not who.valid:
            raise ValueError(f"{name} is revoked; issue a new certificate with: r2f provision {who.kind} {name}")
        return _give(folder, ledger, who, days)


def revoke(folder: Path, name: str, *, old_only: bool = False) -> int:
    """Believe a name's certificates no more; ``old_only``: all but the newest. Returns how many that were.

    Raises ValueError for a name that has none to be revoked.
    """
    with _locked(folder) as ledger:
        valid = _known(folder, ledger, name).valid
        gone = valid[:-1] if old_only else valid
        if not gone:
            _publish(folder, ledger)  # as who was cut off between ledger and brokers asks again
            only = "has no older certificate that is believed; without --old the newest is revoked too"
            raise ValueError(f"{name} {only if valid else 'is revoked already'}: nothing to revoke")
        for one in gone:
            one.revoked = True
        _publish(folder, ledger)
        return len(gone)


def read(folder: Path) -> Ledger:
    """What was issued in a folder. Raises ValueError where there is no authority, or its ledger is damaged."""
    path = folder / AUTHORITY / ISSUED
    if not path.exists():
        raise ValueError(f"{folder}: no authority is there ({path} is missing); r2f provision device NAME makes one")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ledger)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: is damaged ({error}); restore it, or begin with a new folder") from error


def known(folder: Path) -> dict[str, Identity]:
    """The identities of a folder by name; none where there is no authority yet. Raises ValueError for a damaged ledger."""
    return read(folder).identities if (folder / AUTHORITY / ISSUED).exists() else {}


def accounts(ledger: Ledger, broker: Identity) -> list[Account]:
    """Who may use a broker: everybody, or where it is one device's broker, that device and who watches."""
    found = []
    for who in ledger.identities.values():
        if who.kind == "broker" or not who.valid:
            continue
        if broker.device != "+" and (who.kind == "server" or who.device not in ("+", broker.device)):
            continue
        found.append(Account(who.kind, who.name, "", who.device))
    return found


def told(certificate: Path) -> Told:
    """What a certificate says. Raises ValueError that names the file, where it is none, or none of ours."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        (name,), (kind,) = (
            found.subject.get_attributes_for_oid(oid) for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME)
        )
    except OSError as error:
        raise ValueError(f"{certificate}: {error.strerror}; the folder of an identity is made by r2f provision") from error
    except ValueError as error:
        raise ValueError(f"{certificate}: is no certificate of r2f provision ({error})") from error
    return Told(str(name.value), str(kind.value), found.not_valid_after_utc)


def misfit(folder: Path, serial: str = "") -> str:
    """Why the files in an identity's folder do not fit one another; empty where they do.

    ``serial``: of the certificate that was issued last, which it is to be. A renewal that is cut off leaves the old files, or
    the new key beside the old certificate. Raises ValueError that names the file for a key with a passphrase, which no service
    could ask anybody for, and for files that are there and cannot be read.
    """

    def asked() -> str:
        raise ValueError(f"{folder / KEY}: is encrypted, and a service has nobody to ask for a passphrase; put it there plain")

    try:
        for name in (CA, CERTIFICATE, KEY):
            if not (folder / name).exists():
                return f"{name} is missing"
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(folder / CERTIFICATE, folder / KEY, password=asked)
        found = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    except ssl.SSLError as error:  # an OSError, too
        return error.reason or str(error)
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}") from error
    return "it is not the newest that was issued" if serial and f"{found.serial_number:x}" != serial else ""


def days_left(told: Told) -> int:
    """Whole days for which a certificate still holds; negative where it ended."""
    return (told.expires - _now()).days


def state(who: Identity) -> str:
    """For people: until when a name is believed, and how many certificates it has that are."""
    if not who.valid:
        return "revoked"
    newest = who.valid[-1]
    ends = datetime.datetime.fromtimestamp(newest.expires, datetime.UTC)
    days = (ends - _now()).days
    said = f"ended on {ends:%Y-%m-%d}: renew it" if days < 0 else f"until {ends:%Y-%m-%d}"
    if 0 <= days < SOON_DAYS:
        said += f", {days} days: renew it"
    older = len(who.valid) - 1
    return said + (f"; {older} older not revoked" if older else "")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _check(who: Identity, days: int) -> None:
    for what, name in (("name", who.name), ("device", who.device)):
        if not LEVEL.fullmatch(name) and not (what == "device" and name == "+"):
            raise ValueError(f"{name!r} is no {what}: use letters, digits, '_', '.', '-', at most 64, a letter or digit first")
    if who.name == AUTHORITY:
        raise ValueError(f"{who.name!r} is the folder of the authority itself; take another name")
    if who.kind == "device" and who.device != who.name:
        raise ValueError(f"{who.name}: the account of a device is for the device of that name, not for {who.device!r}")
    if who.kind == "broker" and not who.hosts:
        raise ValueError(f"{who.name}: name the hosts that clients call this broker by")
    for host in who.hosts:
        _subject_name(host)
    if not 1 <= days <= MOST_DAYS:
        raise ValueError(f"{days} days: a certificate holds from 1 to {MOST_DAYS}")


def _known(folder: Path, ledger: Ledger, name: str) -> Identity:
    if name not in ledger.identities:
        raise ValueError(f"{folder}: nothing was issued to {name!r}; there are {', '.join(ledger.identities) or 'none'}")
    return ledger.identities[name]


@contextmanager
def _locked(folder: Path, *, create: bool = False) -> Iterator[Ledger]:
    """The ledger, this process's alone for the block; ``create`` makes an authority where there is none."""
    home = folder / AUTHORITY
    if not create:
        read(folder)
    _private(folder)
    _private(home)
    with open(os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (home / CA_KEY).exists():
            if (home / ISSUED).exists() and read(folder).identities:
                raise ValueError(f"{home / CA_KEY}: is missing; without the authority's key nothing can be issued or revoked")
            _make_authority(home)
        yield read(folder)


def _private(folder: Path) -> None:
    """A folder for its owner alone; one that is there already, as a mounted volume is, stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _make_authority(home: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "r2f-authority")])
    made = (
        _builder(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_others=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_whole(home / CA, _pem(made), mode=0o600)
    write_whole(home / ISSUED, msgspec.json.encode(Ledger()), mode=0o600)
    # Last: what has a key is complete.
    write_whole(home / CA_KEY, _key_pem(key), mode=0o600)


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    home = folder / AUTHORITY
    key = serialization.load_pem_private_key((home / CA_KEY).read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{home / CA_KEY}: is no key of r2f provision")
    return x509.load_pem_x509_certificate((home / CA).read_bytes()), key


def _give(folder: Path, ledger: Ledger, who: Identity, days: int) -> Path:
    """Make key and certificate, write them into the identity's folder, and tell every broker's folder."""
    ca, ca_key = _authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, who.kind), x509.NameAttribute(NameOID.COMMON_NAME, who.name)]
    )
    # A device's certificate cannot pass for a broker's, nor a broker's for a client's.
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if who.kind == "broker" else ExtendedKeyUsageOID.CLIENT_AUTH
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(subject, ca.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_others=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    if who.hosts:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_subject_name(host) for host in who.hosts]), critical=False
        )
    made = builder.sign(ca_key, hashes.SHA256())
    expires = made.not_valid_after_utc
    if expires > ca.not_valid_after_utc:
        raise ValueError(f"{days} days: the authority itself ends on {ca.not_valid_after_utc:%Y-%m-%d}; ask for fewer")
    who.certificates.append(Certificate(f"{made.serial_number:x}", int(expires.timestamp())))
    home = folder / who.name
    _private(home)
    if not os.access(home, os.W_OK):
        raise ValueError(f"{home}: cannot be written to by this user, so nothing was issued")
    # The ledger first: a certificate that nobody knows of could not be revoked.
    write_whole(folder / AUTHORITY / ISSUED, msgspec.json.encode(ledger), mode=0o600)
    write_whole(home / CA, _pem(ca), mode=0o600)
    write_whole(home / KEY, _key_pem(key), mode=0o600)
    write_whole(home / CERTIFICATE, _pem(made), mode=0o600)
    _publish(folder, ledger)
    return home


def _publish(folder: Path, ledger: Ledger) -> None:
    """Write the ledger, and what follows from it into every broker's folder: who may do what, and who is revoked."""
    write_whole(folder / AUTHORITY / ISSUED, msgspec.json.encode(ledger), mode=0o600)
    ca, ca_key = _authority(folder)
    now = _now()
    # It never runs out before the authority: with a list that ran out, a broker would refuse everybody.
    builder = x509.CertificateRevocationListBuilder(ca.subject, now - _BACKDATED, ca.not_valid_after_utc)
    for who in ledger.identities.values():
        for one in who.certificates:
            if one.revoked:
                revoked = x509.RevokedCertificateBuilder(int(one.serial, 16), now - _BACKDATED).build()
                builder = builder.add_revoked_certificate(revoked)
    crl = builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    write_whole(folder / AUTHORITY / REVOKED, crl, mode=0o600)
    for who in ledger.identities.values():
        if who.kind == "broker" and (folder / who.name).is_dir():
            write_whole(folder / who.name / ACL, acl(accounts(ledger, who)).encode(), mode=0o600)
            write_whole(folder / who.name / REVOKED, crl, mode=0o600)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:  # fmt: skip
    now = _now()
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return x509.CertificateBuilder(
        issuer, subject, key.public_key(), x509.random_serial_number(), now - _BACKDATED, now + datetime.timedelta(days=days)
    ).add_extension(identifier, critical=False)


def _usage(*, signs_others: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_others, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs_others, crl_sign=signs_others, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _subject_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if not all(LEVEL.fullmatch(label) and "." not in label for label in labels):
        raise ValueError(f"{host!r} is neither an address nor a host's name")
    return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
