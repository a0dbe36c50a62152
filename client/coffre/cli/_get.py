"""`coffre get`."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

import click
from coffre.cli._session import progress_bar, quiet_option, run, split
from coffre.client.async_client import AsyncClient
from coffre.cluster.admin import one_line_errors
from coffre.cluster.errors import InvalidArgument

__all__ = ["get"]


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
    bucket, key = split(source)
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
        with progress_bar(total_bytes, "fetching", quiet=quiet) as advance:
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
