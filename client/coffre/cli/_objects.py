"""Object commands of the command line."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

import click
import uvloop
from coffre.client.async_client import AsyncClient
from coffre.client.config import PASSPHRASE_VARIABLE, connect, find_config
from coffre.client.keys import KeyRing
from coffre.client.model import ObjectInfo
from coffre.cluster.admin import one_line_errors
from coffre.cluster.errors import InvalidArgument, NotFound
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

__all__ = ["COMMANDS", "json_option", "print_json", "quiet_option", "run"]

_T = TypeVar("_T")
_FILES_IN_FLIGHT = 16
_STDIN_CHUNK_BYTES = 1 << 20


def run(ctx: click.Context, work: Callable[[AsyncClient], Awaitable[_T]]) -> _T:
    """Connect, do the work, close."""
    config_path = find_config(ctx.obj)

    async def connected() -> _T:
        client = await connect(config_path)
        try:
            return await work(client)
        finally:
            await client.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(connected())


def _split(target: str, *, key_required: bool = True) -> tuple[str, str]:
    bucket, _, key = target.partition("/")
    if not bucket or (key_required and not key):
        raise InvalidArgument(f"{target!r} names no object: write BUCKET/KEY")
    return bucket, key


def print_json(value: object) -> None:
    """Print one value as JSON, for machines."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _time(unixtime_ms: int) -> str:
    return datetime.fromtimestamp(unixtime_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def _progress(total_bytes: int | None, label: str, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error when that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda size_bytes: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total_bytes)
        yield lambda size_bytes: progress.advance(task, size_bytes)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bar, no summary.")


@click.command()
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True, exists=True))
@click.argument("target", metavar="BUCKET/KEY")
@click.option("--content-type", default="", help="Kept, encrypted, with the object.")
@click.option(
    "--meta", "metadata", multiple=True, metavar="NAME=VALUE", help="Kept, encrypted, with the object."
)
@click.option("--if-absent", is_flag=True, help="Only when there is no such object.")
@click.option("--if-version", metavar="VERSION", help="Only when that is the newest version.")
@json_option
@quiet_option
@click.pass_context
@one_line_errors
def put(
    ctx: click.Context,
    source: Path,
    target: str,
    content_type: str,
    metadata: tuple[str, ...],
    if_absent: bool,
    if_version: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Store SOURCE (a file, a folder, or - for standard input) as BUCKET/KEY.

    A folder's files go below BUCKET/KEY as a prefix. A key that ends in / gets the file's name appended.
    """
    bucket, key = _split(target, key_required=str(source) == "-")
    pairs = dict(pair.partition("=")[::2] for pair in metadata)
    files = _files_to_put(source, key)
    total_bytes = sum(path.stat().st_size for path, _ in files) if str(source) != "-" else None

    async def work(client: AsyncClient) -> list[ObjectInfo]:
        with _progress(total_bytes, "storing", quiet=quiet or as_json) as advance:
            if str(source) == "-":
                stored = await client.put(
                    bucket,
                    key,
                    _stdin(),
                    content_type=content_type,
                    metadata=pairs,
                    if_absent=if_absent,
                    if_version=if_version,
                )
                return [stored]

            async def one(item: tuple[Path, str]) -> ObjectInfo:
                path, name = item
                return await client.put_file(
                    bucket,
                    name,
                    path,
                    content_type=content_type,
                    metadata=pairs,
                    if_absent=if_absent,
                    if_version=if_version,
                    progress=advance,
                )

            return [info async for info in _bounded(files, one)]

    infos = run(ctx, work)
    if as_json:
        print_json([dataclasses.asdict(info) for info in infos])
    elif not quiet:
        for info in infos:
            click.echo(f"{info.bucket}/{info.key}  {info.size_bytes} bytes  version {info.version}")


def _files_to_put(source: Path, key: str) -> list[tuple[Path, str]]:
    if str(source) == "-":
        return []
    if source.is_dir():
        prefix = key if not key or key.endswith("/") else key + "/"
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        return [(path, prefix + path.relative_to(source).as_posix()) for path in paths]
    return [(source, key + source.name if not key or key.endswith("/") else key)]


async def _stdin() -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    while chunk := await loop.run_in_executor(None, os.read, sys.stdin.fileno(), _STDIN_CHUNK_BYTES):
        yield chunk


async def _bounded(
    items: Iterable[_T], call: Callable[[_T], Awaitable[ObjectInfo]]
) -> AsyncIterator[ObjectInfo]:
    """Run `call` on every item, a bounded number at once; the first error ends it."""
    source = iter(items)
    done: list[ObjectInfo] = []

    async def worker() -> None:
        for item in source:
            done.append(await call(item))

    workers = [asyncio.create_task(worker()) for _ in range(_FILES_IN_FLIGHT)]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
    for info in sorted(done, key=lambda info: info.key):
        yield info


@click.command()
@click.argument("source", metavar="BUCKET/KEY")
@click.argument("target", type=click.Path(path_type=Path, allow_dash=True), required=False)
@click.option("--range", "byte_range", metavar="START-END", help="Only these bytes, both ends included.")
@click.option("--version", "version", help="This version instead of the newest.")
@quiet_option
@click.pass_context
@one_line_errors
def get(
    ctx: click.Context,
    source: str,
    target: Path | None,
    byte_range: str | None,
    version: str | None,
    quiet: bool,
) -> None:
    """Fetch BUCKET/KEY to TARGET (default: the key's last part; - for standard output)."""
    bucket, key = _split(source)
    start, length = _parse_range(byte_range)
    path = target if target is not None else Path(key.rsplit("/", 1)[-1])
    if path.is_dir():
        path = path / key.rsplit("/", 1)[-1]
    if str(path) in {"", ".", ".."}:
        raise InvalidArgument("the key gives no file name; name the TARGET")

    async def work(client: AsyncClient) -> int:
        pieces = client.get_stream(bucket, key, start=start, length=length, version=version)
        if str(path) == "-":
            return await _pour(pieces, sys.stdout.buffer)
        if byte_range is not None:
            partial = path.with_name(f"{path.name}.{os.getpid()}.part")
            try:
                with partial.open("wb") as file:
                    size_bytes = await _pour(pieces, file)
                partial.replace(path)
                return size_bytes
            finally:
                partial.unlink(missing_ok=True)
        total_bytes = (await client.head(bucket, key, version=version)).size_bytes
        with _progress(total_bytes, "fetching", quiet=quiet) as advance:
            return await client.get_file(bucket, key, path, version=version, progress=advance)

    size_bytes = run(ctx, work)
    if str(path) != "-" and not quiet:
        click.echo(f"{path}  {size_bytes} bytes")


async def _pour(pieces: AsyncGenerator[bytes | memoryview], sink: BinaryIO) -> int:
    """Write a stream out; return its size."""
    size_bytes = 0
    async with aclosing(pieces) as stream:
        async for piece in stream:
            sink.write(piece)
            size_bytes += len(piece)
    sink.flush()
    return size_bytes


def _parse_range(text: str | None) -> tuple[int, int | None]:
    if text is None:
        return 0, None
    first, dash, last = text.partition("-")
    if not dash or not first.isdigit() or (last and not last.isdigit()) or (last and int(last) < int(first)):
        raise InvalidArgument(f"{text!r} is not a range: write START-END or START-")
    return int(first), int(last) - int(first) + 1 if last else None


@click.command()
@click.argument("target", metavar="BUCKET[/PREFIX]")
@click.option("--recursive", "-r", is_flag=True, help="Every key, not rolled up at /.")
@click.option("--long", "-l", "detailed", is_flag=True, help="Size, time and version.")
@json_option
@click.pass_context
@one_line_errors
def ls(ctx: click.Context, target: str, recursive: bool, detailed: bool, as_json: bool) -> None:
    """List the objects of a bucket, in key order."""
    bucket, prefix = _split(target, key_required=False)

    async def work(client: AsyncClient) -> None:
        async for entry in client.list(bucket, prefix=prefix, delimiter="" if recursive else "/"):
            if as_json:
                row = {"prefix": entry} if isinstance(entry, str) else dataclasses.asdict(entry)
                click.echo(json.dumps(row, ensure_ascii=False))
            elif isinstance(entry, str):
                click.echo(f"{'':54}{_printable(entry)}" if detailed else _printable(entry))
            elif detailed:
                when = _time(entry.unixtime_ms)
                click.echo(f"{entry.size_bytes:>14}  {when}  {entry.version[:16]}  {_printable(entry.key)}")
            else:
                click.echo(_printable(entry.key))

    run(ctx, work)


def _printable(key: str) -> str:
    """A key on one line of a terminal: control characters are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in key)


@click.command()
@click.argument("targets", metavar="BUCKET/KEY...", nargs=-1, required=True)
@click.option("--recursive", "-r", is_flag=True, help="Everything below the prefix BUCKET/KEY.")
@click.option("--force", "-f", is_flag=True, help="Deleting what does not exist is no error.")
@click.option("--if-version", metavar="VERSION", help="Only when that is the newest version.")
@quiet_option
@click.pass_context
@one_line_errors
def rm(
    ctx: click.Context,
    targets: tuple[str, ...],
    recursive: bool,
    force: bool,
    if_version: str | None,
    quiet: bool,
) -> None:
    """Delete objects."""
    if if_version is not None and (recursive or len(targets) > 1):
        raise click.UsageError("--if-version goes with one BUCKET/KEY")

    async def delete(client: AsyncClient, bucket: str, key: str) -> None:
        if not force and not recursive:
            await client.head(bucket, key)
        await client.delete(bucket, key, if_version=if_version)
        if not quiet:
            click.echo(f"deleted {bucket}/{_printable(key)}")

    async def work(client: AsyncClient) -> None:
        for target in targets:
            bucket, key = _split(target, key_required=not recursive)
            if not recursive:
                await delete(client, bucket, key)
                continue
            found = [
                entry.key async for entry in client.list(bucket, prefix=key) if isinstance(entry, ObjectInfo)
            ]
            if not found and not force:
                raise NotFound(f"nothing lies below {target}")
            for name in found:
                await delete(client, bucket, name)

    run(ctx, work)


@click.command()
@click.argument("target", metavar="BUCKET/KEY")
@click.option("--version", "version", help="This version instead of the newest.")
@json_option
@click.pass_context
@one_line_errors
def stat(ctx: click.Context, target: str, version: str | None, as_json: bool) -> None:
    """Show what is known of an object."""
    bucket, key = _split(target)
    info = run(ctx, lambda client: client.head(bucket, key, version=version))
    if as_json:
        print_json(dataclasses.asdict(info))
        return
    click.echo(f"object   {info.bucket}/{_printable(info.key)}")
    click.echo(f"size     {info.size_bytes} bytes")
    click.echo(f"written  {_time(info.unixtime_ms)} UTC")
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
    bucket, key = _split(target)
    infos = run(ctx, lambda client: client.versions(bucket, key))
    if not infos:
        raise NotFound(f"{target} does not exist")
    if as_json:
        print_json([dataclasses.asdict(info) for info in infos])
        return
    for info in infos:
        what = "deleted" if info.deleted else f"{info.size_bytes} bytes"
        click.echo(f"{info.version}  {_time(info.unixtime_ms)}  {what}")


@click.command()
@click.argument("target", metavar="BUCKET/KEY")
@json_option
@click.pass_context
@one_line_errors
def locate(ctx: click.Context, target: str, as_json: bool) -> None:
    """Show node, site, operator and state of every shard of an object."""
    bucket, key = _split(target)
    places = run(ctx, lambda client: client.locate(bucket, key))
    if as_json:
        print_json([dataclasses.asdict(place) for place in places])
        return
    table = Table("shard", "kind", "node", "site", "operator", "state", "bytes on disk")
    for place in places:
        kind = "parity" if place.parity else "data"
        row = (str(place.shard_index), kind, place.node_id, place.site, place.operator, place.state)
        table.add_row(*row, str(place.size_bytes))
    Console().print(table)


@click.group()
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
    """Write NEW: the keys of OLD and a new current one. Objects written before stay readable."""
    passphrase = _passphrase(new=False)
    ring = KeyRing.load(old, passphrase).rotated()
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


COMMANDS: dict[str, click.Command] = {
    command.name: command for command in (put, get, ls, rm, stat, locate, versions, keyring) if command.name
}
