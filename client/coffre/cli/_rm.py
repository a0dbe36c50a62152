"""`coffre rm`."""

from __future__ import annotations

from contextlib import suppress

import click
from coffre.cli._session import printable, quiet_option, run, split
from coffre.client.async_client import AsyncClient
from coffre.client.model import ObjectInfo
from coffre.cluster.admin import one_line_errors
from coffre.cluster.errors import KeyUnavailable, NotFound, Unsupported

__all__ = ["rm"]


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
            with suppress(KeyUnavailable, Unsupported):  # it is there, and that is all there is to know
                await client.head(bucket, key)
        await client.delete(bucket, key, if_version=if_version)
        if not quiet:
            click.echo(f"deleted {bucket}/{printable(key)}")

    async def work(client: AsyncClient) -> None:
        for target in targets:
            bucket, key = split(target, key_required=not recursive)
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
