"""`coffre get`."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path

import click
from coffre.cli._folders import Tree, parts_of
from coffre.cli._many import Tally, do_all
from coffre.cli._session import folder_prefix, printable, progress_bar, quiet_option, run, split
from coffre.client._targets import Write, unjoined
from coffre.client.async_client import AsyncClient
from coffre.client.model import ObjectInfo
from coffre.cluster.admin import one_line_errors
from coffre.cluster.errors import InvalidArgument, NotFound

__all__ = ["get"]

_OUTPUTS = {"-", "/dev/stdout", "/dev/fd/1"}


@click.command()
@click.argument("source", metavar="BUCKET/KEY")
@click.argument("target", type=click.Path(path_type=Path, allow_dash=True), required=False)
@click.option("--recursive", "-r", is_flag=True, help="Everything below BUCKET/KEY/, into the folder TARGET.")
@click.option("--range", "byte_range", metavar="START-END", help="Only these bytes, both ends included.")
@click.option("--version", "version", help="This version instead of the newest.")
@quiet_option
@click.pass_context
@one_line_errors
def get(
    ctx: click.Context,
    source: str,
    target: Path | None,
    recursive: bool,
    byte_range: str | None,
    version: str | None,
    quiet: bool,
) -> None:
    """Fetch BUCKET/KEY to TARGET (default: the key's last part; - for standard output).

    With -r, everything below BUCKET/KEY/ goes below the folder TARGET, as `put` of a folder had it. What cannot be a
    file there is named, the rest is fetched, and the status is 1.
    """
    if recursive:
        if target is None or str(target) == "-" or byte_range is not None or version is not None:
            raise click.UsageError("-r wants a folder as TARGET, and goes with neither --range nor --version")
        _get_folder(ctx, source, target, quiet)
        return
    bucket, key = split(source)
    start, length = _parse_range(byte_range)
    if target is not None and str(target) in _OUTPUTS:
        if sys.__stdout__ is None:
            raise InvalidArgument("standard output is closed: there is nowhere to write to")
        run(
            ctx,
            lambda client: _pour(client.get_stream(bucket, key, start=start, length=length, version=version)),
        )
        return
    path = _path(target, key)

    async def work(client: AsyncClient) -> int:
        total_bytes = length
        if byte_range is None:
            total_bytes = (await client.head(bucket, key, version=version)).size_bytes
        with progress_bar(total_bytes, "fetching", quiet=quiet) as advance:
            return await client.get_file(
                bucket, key, path, start=start, length=length, version=version, progress=advance
            )

    size_bytes = run(ctx, work)
    if not quiet:
        click.echo(f"{printable(str(path))}  {size_bytes} bytes")


def _path(target: Path | None, key: str) -> Path:
    """Where the object goes: a folder gets the key's last part."""
    if target is not None and not target.is_dir():
        return target
    name = parts_of(key.rsplit("/", 1)[-1])
    if name is None:
        raise InvalidArgument("the key gives no file name; name the TARGET")
    return (target or Path()) / name[0]


async def _pour(pieces: AsyncGenerator[bytes | memoryview]) -> None:
    """Write a stream to standard output. Who does not read it does not keep this from being interrupted."""

    def write_all(rest: memoryview) -> None:
        # By number, past Python's buffer: a thread that stands in it would keep the interpreter from ending.
        while rest:
            rest = rest[os.write(sys.stdout.fileno(), rest) :]

    async with aclosing(pieces) as stream:
        async for piece in stream:
            view = memoryview(piece)
            await unjoined(lambda view=view: write_all(view))  # type: ignore[misc]  # a default that binds


def _parse_range(text: str | None) -> tuple[int, int | None]:
    if text is None:
        return 0, None
    first, dash, last = text.partition("-")
    if not dash or not first.isdigit() or (last and not last.isdigit()) or (last and int(last) < int(first)):
        raise InvalidArgument(f"{text!r} is not a range: write START-END or START-")
    return int(first), int(last) - int(first) + 1 if last else None


# ------------------------------------------------------------------ folders


@dataclass(frozen=True, slots=True)
class _Fetched:
    name: str  # BUCKET/KEY
    key: str
    parts: tuple[str, ...]
    size_bytes: int
    is_folder: bool = False  # an empty object whose key ends in /, as other programs mark folders


def _get_folder(ctx: click.Context, source: str, target: Path, quiet: bool) -> None:
    bucket, key = split(source, key_required=False)
    prefix = folder_prefix(key)
    tally = Tally[_Fetched]()

    async def work(client: AsyncClient) -> None:
        found = [entry async for entry in client.list(bucket, prefix=prefix) if isinstance(entry, ObjectInfo)]
        wanted = list(_plan(found, prefix, tally))
        if not found:
            raise NotFound(f"nothing lies below {bucket}/{prefix}")
        with (
            closing(Tree(target)) as tree,
            progress_bar(sum(each.size_bytes for each in wanted), "fetching", quiet=quiet) as advance,
        ):

            async def one(each: _Fetched) -> _Fetched:
                if each.is_folder:
                    tree.make_folder(each.parts)
                    return each

                async def fill(write: Write) -> int:
                    size_bytes = 0
                    async with aclosing(client.get_stream(bucket, each.key)) as pieces:
                        async for piece in pieces:
                            await write(piece)
                            size_bytes += len(piece)
                            advance(len(piece))
                    return size_bytes

                size_bytes = await tree.write(each.parts, os.urandom(4).hex(), fill)
                return dataclasses.replace(each, size_bytes=size_bytes)

            await do_all(wanted, one, lambda each: each.name, tally)

    run(ctx, work)
    if not quiet:
        for each in sorted(tally.done, key=lambda each: each.key):
            if not each.is_folder:
                click.echo(f"{printable(str(target.joinpath(*each.parts)))}  {each.size_bytes} bytes")
    tally.end("fetched")


def _plan(found: Iterable[ObjectInfo], prefix: str, tally: Tally[_Fetched]) -> Iterable[_Fetched]:
    """Where each object goes. Where a key is an object and a folder, the folder is kept, for more lies in it."""
    wanted: list[_Fetched] = []
    folders: set[tuple[str, ...]] = set()
    for info in found:
        relative = info.key[len(prefix) :]
        is_mark = not info.size_bytes and not info.unreadable
        if not relative and is_mark:
            continue  # of the folder itself
        is_folder = relative.endswith("/") and is_mark
        parts = parts_of(relative.removesuffix("/") if is_folder else relative)
        if parts is None:
            tally.leave_out(f"{info.bucket}/{info.key}", "no file can have this name")
            continue
        above = len(parts) if is_folder else len(parts) - 1
        folders.update(parts[:depth] for depth in range(1, above + 1))
        wanted.append(_Fetched(f"{info.bucket}/{info.key}", info.key, parts, info.size_bytes, is_folder))
    for each in wanted:
        if not each.is_folder and each.parts in folders:
            tally.leave_out(each.name, "other objects lie below this name, so it is a folder")
        else:
            yield each
