"""`fedcore keys`: signing keys of members of secure sums, and the roster that says whose they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcore.cli.help import Command, Group
from fedcore.cli.run import Json
from fedcore.cli.terminal import print_json, showing
from fedcore.errors import PrivacyError
from fedcore.numbers import printable

if TYPE_CHECKING:
    from fedcore.privacy.secagg.roster_file import RosterFile

keys = typer.Typer(
    name="keys",
    cls=Group,
    help="Signing keys of members of secure sums, and the roster of whose they are, kept away from the server.",
    no_args_is_help=True,
    add_completion=False,
)
File = Annotated[Path, typer.Argument(help="The roster, a JSON file.", show_default=False)]
Member = Annotated[str, typer.Argument(help="The member's identifier.", show_default=False)]
Public = Annotated[str, typer.Argument(help="Its public key, as `fedcore keys new` shows it.", show_default=False)]


@keys.command(cls=Command)
def new(
    path: Annotated[Path, typer.Argument(help="Where the secret key goes; it must not exist.", show_default=False)],
    json: Json = False,
) -> None:
    """Make a member's signing key on its own machine, and show the public key to enrol."""
    from fedcore.privacy.secagg.roster_file import new_key

    public = new_key(path)
    with showing(f"{printable(path)} is complete, and its public key is {public}"):
        _print_public(path, public, json)


@keys.command(cls=Command)
def public(
    path: Annotated[Path, typer.Argument(help="The secret key, as `fedcore keys new` wrote it.", show_default=False)],
    json: Json = False,
) -> None:
    """Show the public key of a member's signing key again."""
    from fedcore.privacy.secagg.roster_file import public_of

    found = public_of(path)
    with showing():
        _print_public(path, found, json)


@keys.command(cls=Command)
def enrol(roster: File, member: Member, public: Public, json: Json = False) -> None:
    """Add a member to a roster, which is made if it is not there."""
    _change(roster, json, "enrol", member, public)


@keys.command(cls=Command)
def rotate(roster: File, member: Member, public: Public, json: Json = False) -> None:
    """Give a member another key; the old one cannot come back."""
    _change(roster, json, "rotate", member, public)


@keys.command(cls=Command)
def revoke(roster: File, member: Member, json: Json = False) -> None:
    """Take a member out; its key cannot come back."""
    _change(roster, json, "revoke", member)


@keys.command(cls=Command)
def show(roster: File, json: Json = False) -> None:
    """List members and their keys, and the digest by which all sides can compare their rosters."""
    from fedcore.privacy.secagg.roster_file import RosterFile

    file = RosterFile.existing(roster)
    with showing():
        _print(file, _digest(file), json)


def _print_public(path: Path, public: str, json: bool) -> None:
    if json:
        print_json({"key": str(path), "public": public})
    else:
        typer.echo(public)


def _change(path: Path, json: bool, what: str, *arguments: str) -> None:
    from fedcore.privacy.secagg.roster_file import RosterFile

    file = RosterFile(path) if what == "enrol" else RosterFile.existing(path)
    new = not file.there
    getattr(file, what)(*arguments)
    digest = None
    try:
        digest = _digest(file)
    except PrivacyError as error:  # of another member: this one's change is made
        print(f"fedcore: note: {error}", file=sys.stderr)
    with showing(f"{printable(path)} is complete"):
        _print(file, digest, json, new)


def _digest(file: RosterFile) -> str | None:
    """None where there are no members. Raises PrivacyError for a roster that other hands broke."""
    return file.roster().digest().hex() if file.members else None


def _print(file: RosterFile, digest: str | None, json: bool, new: bool = False) -> None:
    if json:
        facts = {"members": file.members, "retired": len(file.retired), "digest": digest, "new": new}
        print_json({"roster": str(file.path)} | facts)
        return
    if new:
        typer.echo(f"new roster {printable(file.path)}")
    for name, public in sorted(file.members.items()):
        escaped = "" if name.isascii() else f" ({name!a})"  # letters of two scripts may look alike
        typer.echo(f"{printable(name)}{escaped}  {public}")
    typer.echo(f"members: {len(file.members)}, keys retired: {len(file.retired)}, digest {digest or 'none'}")
