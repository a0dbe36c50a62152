"""`coffre rm`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import click
from coffre.cli._many import Tally, do_all
from coffre.cli._session import folder_prefix, printable, quiet_option, run, size_text, split
from coffre.client.async_client import AsyncClient
from coffre.client.model import ObjectInfo
from coffre.cluster.admin import confirmed, one_line_errors
from coffre.cluster.errors import Conflict, InvalidArgument, KeyUnavailable, NotFound, Unsupported

__all__ = ["rm"]


@dataclass(frozen=True, slots=True)
class _Found:
    """What lies below one BUCKET/KEY."""

    bucket: str
    prefix: str
    objects: int
    size_bytes: int
    newest: str  # of all versions that were counted

    def text(self) -> str:
        """One line for people."""
        count = "1 object" if self.objects == 1 else f"{self.objects:,} objects"
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
    tally = Tally[None]()

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
            await _page_by_page(client, each, partial(delete, client, each.bucket), tally)

    run(ctx, all_below if many else one_by_one)
    tally.end("deleted")


async def _find(client: AsyncClient, bucket: str, prefix: str, force: bool) -> _Found:
    """Raises `NotFound` when nothing lies there."""
    objects, size_bytes, newest = 0, 0, ""
    async for entry in client.list(bucket, prefix=prefix):
        objects += 1
        size_bytes += entry.size_bytes
        newest = max(newest, entry.version)
    if not objects and not force:
        raise NotFound(f"nothing lies below {bucket}/{prefix}")
    return _Found(bucket, prefix, objects, size_bytes, newest)


async def _page_by_page(
    client: AsyncClient, found: _Found, delete: Callable[[str], Awaitable[None]], tally: Tally[None]
) -> None:
    """Delete what was counted, in constant memory. What was stored since then nobody has agreed to delete."""

    async def one(entry: ObjectInfo) -> None:
        if entry.version > found.newest:
            raise Conflict("it was stored after the objects were counted")
        await delete(entry.key)

    token: str | None = None
    while found.objects:
        page = await client.list_page(found.bucket, prefix=found.prefix, token=token)
        await do_all(page.objects, one, lambda entry: f"{found.bucket}/{entry.key}", tally)
        token = page.next_token
        if token is None:
            return


def _agreed(found: Sequence[_Found]) -> bool:
    """Ask. Raises `InvalidArgument` when nobody can answer."""
    if not any(each.objects for each in found):
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidArgument(
            "nothing is deleted: there is no terminal to ask on; say --yes, or --dry-run to look"
        )
    return confirmed("Delete them?")
