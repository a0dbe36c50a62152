"""`coffre rm`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import click
from coffre.cli._many import Tally, do_all
from coffre.cli._session import folder_prefix, printable, quiet_option, run, size_text, split
from coffre.client.async_client import AsyncClient
from coffre.client.model import ObjectInfo
from coffre.cluster.admin import confirmed, one_line_errors
from coffre.cluster.errors import InvalidArgument, KeyUnavailable, NotFound, Unsupported

__all__ = ["rm"]


@dataclass(frozen=True, slots=True)
class _Found:
    """What lies below one BUCKET/KEY."""

    bucket: str
    prefix: str
    keys: list[str]
    size_bytes: int

    def text(self) -> str:
        """One line for people."""
        count = "1 object" if len(self.keys) == 1 else f"{len(self.keys):,} objects"
        where = f"{self.bucket}/{printable(self.prefix)}"
        return f"{where}: {count}, {size_text(self.size_bytes)}"


@click.command()
@click.argument("targets", metavar="BUCKET/KEY...", nargs=-1, required=True)
@click.option("--recursive", "-r", is_flag=True, help="Everything below the folder BUCKET/KEY/.")
@click.option("--prefix", "bare", is_flag=True, help="Everything whose name begins with BUCKET/KEY.")
@click.option("--dry-run", "-n", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--force", "-f", is_flag=True, help="Deleting what does not exist is no error.")
@click.option("--if-version", metavar="VERSION", help="Only when that is the newest version.")
@quiet_option
@click.pass_context
@one_line_errors
def rm(
    ctx: click.Context,
    targets: tuple[str, ...],
    recursive: bool,
    bare: bool,
    dry_run: bool,
    yes: bool,
    force: bool,
    if_version: str | None,
    quiet: bool,
) -> None:
    """Delete objects.

    With -r or --prefix it says first how many objects and bytes go, and asks; a script says --yes.
    """
    many = recursive or bare
    if if_version is not None and (many or len(targets) > 1):
        raise click.UsageError("--if-version goes with one BUCKET/KEY")
    names = [split(target, key_required=bare or not recursive) for target in targets]
    tally = Tally[str]()

    async def delete(client: AsyncClient, bucket: str, key: str) -> None:
        if not dry_run:
            await client.delete(bucket, key, if_version=if_version)
        if not quiet:
            click.echo(f"{'would delete' if dry_run else 'deleted'} {bucket}/{printable(key)}")

    async def one_by_one(client: AsyncClient) -> None:
        for bucket, key in names:
            if not force:
                with suppress(KeyUnavailable, Unsupported):  # it is there, and that is all there is to know
                    await client.head(bucket, key)
            await delete(client, bucket, key)

    async def all_below(client: AsyncClient) -> None:
        found = [
            await _find(client, bucket, key if bare else folder_prefix(key), force) for bucket, key in names
        ]
        for each in found:
            click.echo(each.text(), err=True)
        if not (dry_run or yes or _agreed(found)):
            raise click.Abort
        for each in found:

            async def one(key: str, bucket: str = each.bucket) -> str:
                await delete(client, bucket, key)
                return key

            await do_all(each.keys, one, lambda key, bucket=each.bucket: f"{bucket}/{key}", tally)  # type: ignore[misc]

    run(ctx, all_below if many else one_by_one)
    tally.end("deleted")


async def _find(client: AsyncClient, bucket: str, prefix: str, force: bool) -> _Found:
    """Raises `NotFound` when nothing lies there."""
    keys: list[str] = []
    size_bytes = 0
    async for entry in client.list(bucket, prefix=prefix):
        if isinstance(entry, ObjectInfo):
            keys.append(entry.key)
            size_bytes += entry.size_bytes
    if not keys and not force:
        raise NotFound(f"nothing lies below {bucket}/{prefix}")
    return _Found(bucket, prefix, keys, size_bytes)


def _agreed(found: Sequence[_Found]) -> bool:
    """Ask. Raises `InvalidArgument` when nobody can answer."""
    if not any(each.keys for each in found):
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidArgument(
            "nothing is deleted: there is no terminal to ask on; say --yes, or --dry-run to look"
        )
    return confirmed("Delete them?")
