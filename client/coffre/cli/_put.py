"""`coffre put`."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import click
from coffre.cli._session import json_option, print_json, progress_bar, quiet_option, run, split
from coffre.client.async_client import AsyncClient
from coffre.client.model import ObjectInfo
from coffre.cluster.admin import one_line_errors

__all__ = ["put"]

_T = TypeVar("_T")
_FILES_IN_FLIGHT = 16
_STDIN_CHUNK_BYTES = 1 << 20


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
    bucket, key = split(target, key_required=str(source) == "-")
    pairs = dict(pair.partition("=")[::2] for pair in metadata)
    files = _files_to_put(source, key)
    total_bytes = sum(path.stat().st_size for path, _ in files) if str(source) != "-" else None

    async def work(client: AsyncClient) -> list[ObjectInfo]:
        with progress_bar(total_bytes, "storing", quiet=quiet or as_json) as advance:
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
