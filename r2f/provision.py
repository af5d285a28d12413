"""``r2f provision``: who may be on the bus, each with an account and a certificate of a private authority."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2f.command_line import guarded

if TYPE_CHECKING:
    from broker.certificates import Identity

app = typer.Typer(no_args_is_help=True, help="Issue, renew and revoke the certificates by which a broker knows its clients.")

Folder = Annotated[Path, typer.Option(envvar="R2F_IDENTITIES", help="Where identities lie, the authority's key among them.")]
Days = Annotated[int, typer.Option(help="For how many days the certificate holds, 1 to 3650.")]
Bound = Annotated[str, typer.Option("--device", help="The device whose topics alone it may use; + for all.")]
IDENTITIES = Path("identities")


@app.command()
def device(
    name: Annotated[str, typer.Argument(help="The device's name, as in its topics.")],
    folder: Folder = IDENTITIES,
    days: Days = 365,
) -> None:
    """Issue a device's certificate: for its services, and for the bridge of its own broker."""
    from broker.certificates import Identity

    _issue(folder, Identity(name, "device", name), days)


@app.command()
def server(
    name: Annotated[str, typer.Argument(help="A name for this server side.")] = "server",
    bound: Bound = "+",
    folder: Folder = IDENTITIES,
    days: Days = 365,
) -> None:
    """Issue a certificate of the server's side: trainer, codec, and who starts runs."""
    from broker.certificates import Identity

    _issue(folder, Identity(name, "server", bound), days)


@app.command()
def watch(
    name: Annotated[str, typer.Argument(help="A name for who watches.")] = "watch",
    bound: Bound = "+",
    folder: Folder = IDENTITIES,
    days: Days = 365,
) -> None:
    """Issue a certificate for watching: it reads everything and writes nothing."""
    from broker.certificates import Identity

    _issue(folder, Identity(name, "watch", bound), days)


@app.command()
def broker(
    name: Annotated[str, typer.Argument(help="A name for this broker.")],
    host: Annotated[list[str], typer.Option(help="Name or address by which clients call it; several times.")],
    bound: Annotated[str, typer.Option("--device", help="The device whose own broker it is; + for one of all.")] = "+",
    folder: Folder = IDENTITIES,
    days: Days = 365,
) -> None:
    """Issue a broker's certificate; python -m broker --identity runs with its folder."""
    from broker.certificates import Identity

    _issue(folder, Identity(name, "broker", bound, host), days)


@app.command()
def renew(
    name: Annotated[str, typer.Argument(help="Whose key and certificate are to be made anew.")],
    folder: Folder = IDENTITIES,
    days: Days = 365,
) -> None:
    """Issue a new key and certificate to a name; the one before is believed until it ends or is revoked (--old)."""

    def work() -> None:
        from broker import certificates

        print(certificates.renew(folder, name, days))

    guarded(work)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose certificates are to be believed no more.")],
    old: Annotated[bool, typer.Option("--old", help="All but the newest: after that one is where it belongs.")] = False,
    folder: Folder = IDENTITIES,
) -> None:
    """Revoke a name's certificates; brokers that run on these folders refuse it within seconds."""

    def work() -> None:
        from broker import certificates

        count = certificates.revoke(folder, name, old_only=old)
        print(f"{name}: {count} certificate{'' if count == 1 else 's'} revoked")

    guarded(work)


@app.command("list")
def listing(folder: Folder = IDENTITIES) -> None:
    """List names, what they are, and for how long their certificates hold."""

    def work() -> None:
        from rich.console import Console
        from rich.table import Table

        from broker import certificates

        table = Table("name", "kind", "device", "hosts", "state", box=None, pad_edge=False)
        for who in certificates.read(folder).identities.values():
            hosts = ", ".join(who.hosts)
            table.add_row(who.name, who.kind, who.device, hosts, certificates.state(who))
        console = Console()
        console.print(table)
        console.print("device: whose topics it may use, of a broker whose own it is; + is every device", style="dim")

    guarded(work)


def _issue(folder: Path, who: Identity, days: int) -> None:
    def work() -> None:
        from broker import certificates

        home = folder / certificates.AUTHORITY
        was_there = (home / certificates.CA_KEY).exists()
        made = certificates.issue(folder, who, days)
        if not was_there:
            said = f"made a private authority in {home}; who has its {certificates.CA_KEY} can issue anything, so keep it here"
            print(said, file=sys.stderr)
        print(made)

    guarded(work)
