"""`coffre put`."""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import click
from coffre.cli._folders import FoundFile, walk
from coffre.cli._many import Tally, do_all
from coffre.cli._session import (
    folder_prefix,
    json_option,
    print_json,
    printable,
    progress_bar,
    quiet_option,
    run,
    split,
)
from coffre.client._targets import unjoined
from coffre.client.async_client import AsyncClient
from coffre.client.model import ObjectInfo
from coffre.cluster.admin import one_line_errors
from coffre.cluster.errors import InvalidArgument

__all__ = ["put"]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _How:
    """What goes with every object of one command."""

    content_type: str
    metadata: dict[str, str]
    if_absent: bool
    if_version: str | None


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

    A folder's files go below BUCKET/KEY/. A key that ends in / gets the file's name appended. What is left out of a
    folder (what cannot be read, links to folders, what is no file) is named, the rest is stored, and the status is 1.
    """
    how = _How(content_type, dict(pair.partition("=")[::2] for pair in metadata), if_absent, if_version)
    shown = not (quiet or as_json)
    is_stream = _is_stream(source)
    bucket, key = split(target, key_required=str(source) == "-")
    tally = Tally[ObjectInfo]()
    if source.is_dir():
        if if_version is not None:
            raise click.UsageError("--if-version goes with one file")
        files = list(walk(source, tally.leave_out))
        run(ctx, lambda client: _put_folder(client, files, bucket, folder_prefix(key), how, tally, shown))
        tally.done.sort(key=lambda info: info.key)
    else:
        is_named = str(source) != "-" and (not key or key.endswith("/"))
        name = key + source.name if is_named else key
        size_bytes = None if is_stream else source.stat().st_size

        async def one(client: AsyncClient) -> ObjectInfo:
            if is_stream:
                return await client.put(bucket, name, _chunks(source), **dataclasses.asdict(how))
            with progress_bar(size_bytes, "storing", quiet=not shown) as advance:
                return await client.put_file(
                    bucket, name, source, **dataclasses.asdict(how), progress=advance
                )

        tally.add(run(ctx, one))
    if as_json:
        print_json([dataclasses.asdict(info) for info in tally.done])
    elif not quiet:
        for info in tally.done:
            click.echo(
                f"{info.bucket}/{printable(info.key)}  {info.size_bytes} bytes  version {info.version}"
            )
    tally.end("stored")


async def _put_folder(
    client: AsyncClient,
    files: list[FoundFile],
    bucket: str,
    prefix: str,
    how: _How,
    tally: Tally[ObjectInfo],
    shown: bool,
) -> None:
    """Store what was found in a folder, file by file."""
    options = dataclasses.asdict(how)
    with progress_bar(sum(file.size_bytes for file in files), "storing", quiet=not shown) as advance:

        async def one(file: FoundFile) -> ObjectInfo:
            return await client.put_file(
                bucket, prefix + file.relative, file.path, **options, progress=advance
            )

        await do_all(files, one, lambda file: str(file.path), tally)


def _is_stream(source: Path) -> bool:
    """Whether a source has no size before it ends: standard input, a pipe, a device."""
    if str(source) == "-":
        if sys.__stdin__ is None:
            raise InvalidArgument("standard input is closed: there is nothing to store")
        return True
    mode = source.stat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


async def _chunks(source: Path) -> AsyncIterator[bytes]:
    """What comes from a stream. Who waits for it can be interrupted."""
    descriptor = 0
    if str(source) != "-":
        descriptor = await unjoined(lambda: os.open(source, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    reading = False
    try:
        while True:
            reading = True
            chunk = await unjoined(lambda: os.read(descriptor, _CHUNK_BYTES))
            reading = False
            if not chunk:
                return
            yield chunk
    except OSError as error:
        raise InvalidArgument(f"cannot read {source}: {error.strerror}") from None
    finally:
        if descriptor and not reading:
            os.close(descriptor)
