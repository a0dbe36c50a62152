"""Commands that look at objects: `coffre ls`, `stat`, `versions`, `locate`; and `coffre keyring`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
from coffre.cli._session import json_option, print_json, printable, run, split, time_text
from coffre.client.async_client import AsyncClient
from coffre.client.config import PASSPHRASE_VARIABLE
from coffre.client.keys import KeyRing
from coffre.client.model import ObjectInfo
from coffre.cluster.admin import CommandGroup, one_line_errors, print_table
from coffre.cluster.errors import InvalidArgument, NotFound, RetryableError
from rich.table import Table

__all__ = ["keyring", "locate", "ls", "stat", "versions"]


@click.command()
@click.argument("target", metavar="[BUCKET[/PREFIX]]", required=False)
@click.option("--recursive", "-r", is_flag=True, help="Every key, not rolled up at /.")
@click.option("--long", "-l", "detailed", is_flag=True, help="Size, time and version.")
@json_option
@click.pass_context
@one_line_errors
def ls(ctx: click.Context, target: str | None, recursive: bool, detailed: bool, as_json: bool) -> None:
    """List the objects of a bucket, in key order; without an argument the buckets in use."""
    if target is None:
        for name in run(ctx, _buckets_in_use):
            click.echo(json.dumps({"bucket": name}) if as_json else name)
        return
    bucket, prefix = split(target, key_required=False)

    async def work(client: AsyncClient) -> None:
        unreadable = ""
        count = 0
        async for entry in client.list(bucket, prefix=prefix, delimiter="" if recursive else "/"):
            if isinstance(entry, ObjectInfo) and entry.unreadable:
                unreadable, count = unreadable or entry.unreadable, count + 1
            if as_json:
                row = {"prefix": entry} if isinstance(entry, str) else dataclasses.asdict(entry)
                click.echo(json.dumps(row, ensure_ascii=False))
            elif isinstance(entry, str):
                click.echo(f"{'':71}{printable(entry)}" if detailed else printable(entry))
            elif detailed:
                when = time_text(entry.unixtime_ms)
                click.echo(f"{entry.size_bytes:>14}  {when}  {entry.version}  {printable(entry.key)}")
            else:
                click.echo(printable(entry.key))
        if count:
            more = f" (and {count - 1} more)" if count > 1 else ""
            click.echo(f"cannot be opened here: {printable(unreadable)}{more}", err=True)

    run(ctx, work)


async def _buckets_in_use(client: AsyncClient) -> list[str]:
    """Those that hold objects, and those that were created, where that can be known."""
    created: list[str] = []
    with suppress(RetryableError):  # not there, or full
        created = await client.list_buckets()
    return sorted({*created, *await client.used_buckets()})


@click.command()
@click.argument("target", metavar="BUCKET/KEY")
@click.option("--version", "version", help="This version instead of the newest.")
@json_option
@click.pass_context
@one_line_errors
def stat(ctx: click.Context, target: str, version: str | None, as_json: bool) -> None:
    """Show what is known of an object."""
    bucket, key = split(target)
    info = run(ctx, lambda client: client.head(bucket, key, version=version))
    if as_json:
        print_json(dataclasses.asdict(info))
        return
    click.echo(f"object   {info.bucket}/{printable(info.key)}")
    click.echo(f"size     {info.size_bytes} bytes")
    click.echo(f"written  {time_text(info.unixtime_ms)} UTC")
    click.echo(f"version  {info.version}")
    if info.content_type:
        click.echo(f"type     {info.content_type}")
    for name, value in sorted(info.metadata.items()):
        click.echo(f"meta     {name}={value}")


@click.command()
@click.argument("target", metavar="BUCKET/KEY")
@json_option
@click.pass_context
@one_line_errors
def versions(ctx: click.Context, target: str, as_json: bool) -> None:
    """List the versions of an object that are still kept, newest first."""
    bucket, key = split(target)
    infos = run(ctx, lambda client: client.versions(bucket, key))
    if not infos:
        raise NotFound(f"{target} does not exist")
    if as_json:
        print_json([dataclasses.asdict(info) for info in infos])
        return
    for info in infos:
        what = "deleted" if info.deleted else f"{info.size_bytes} bytes"
        click.echo(f"{info.version}  {time_text(info.unixtime_ms)}  {what}")


@click.command()
@click.argument("target", metavar="BUCKET/KEY")
@json_option
@click.pass_context
@one_line_errors
def locate(ctx: click.Context, target: str, as_json: bool) -> None:
    """Show node, site, operator and state of every shard of an object."""
    bucket, key = split(target)
    places = run(ctx, lambda client: client.locate(bucket, key))
    if as_json:
        print_json([dataclasses.asdict(place) for place in places])
        return
    table = Table("shard", "kind", "node", "site", "operator", "state", "bytes on disk")
    for place in places:
        kind = "parity" if place.parity else "data"
        row = (str(place.shard_index), kind, place.node_id, place.site, place.operator, place.state)
        table.add_row(*row, str(place.size_bytes))
    print_table(table)


@click.group(cls=CommandGroup)
def keyring() -> None:
    """Make and rotate the key ring. Whoever loses it loses every record; keep a copy off site."""


def _passphrase(*, new: bool) -> bytes:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is None:
        given = click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True)
    if not given:
        raise InvalidArgument("the passphrase is empty")
    return given.encode()


@keyring.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@one_line_errors
def create(path: Path) -> None:
    """Make a key ring with one new key."""
    ring = KeyRing.generate()
    ring.save(path, _passphrase(new=True))
    click.echo(f"{path}: key {ring.current}")


@keyring.command()
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
@one_line_errors
def rotate(old: Path, new: Path) -> None:
    """Write NEW: the keys of OLD and a new current one. Objects written before stay readable.

    For a tenant with one host. Where there are several, each needs the new key before any writes with it: `add`, carry
    that ring to all of them, then `switch`, and carry that one (docs/operations.md, "Keys are rotated").
    """
    _changed(old, new, KeyRing.rotated)


@keyring.command()
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
@one_line_errors
def add(old: Path, new: Path) -> None:
    """Write NEW: the keys of OLD and a new one, which nothing is written with before `switch`."""
    _changed(old, new, KeyRing.extended)


@keyring.command()
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
@one_line_errors
def switch(old: Path, new: Path) -> None:
    """Write NEW: the keys of OLD, of which the one that was added last is current from now on."""
    _changed(old, new, KeyRing.switched)


def _changed(old: Path, new: Path, change: Callable[[KeyRing], KeyRing]) -> None:
    passphrase = _passphrase(new=False)
    ring = change(KeyRing.load(old, passphrase))
    ring.save(new, passphrase)
    click.echo(f"{new}: keys {', '.join(ring.key_ids)}; current {ring.current}")


@keyring.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@one_line_errors
def show(path: Path) -> None:
    """Show the names of the keys, never the keys."""
    ring = KeyRing.load(path, _passphrase(new=False))
    for key_id in ring.key_ids:
        click.echo(f"{key_id}{'  current' if key_id == ring.current else ''}")
