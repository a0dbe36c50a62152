"""`coffre cluster publish`, `nodes`, `tenants` and `restore-coordination`: what operators do with coordination."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import click
from coffre.cluster._files import read_file
from coffre.cluster.admin.cli_errors import one_line_errors
from coffre.cluster.admin.groups import CommandGroup
from coffre.cluster.admin.operator import find_operator_config, load_operator_config, operator_option
from coffre.cluster.admin.suspending import Taken, await_taken, check_known
from coffre.cluster.clock import SystemClock
from coffre.cluster.coordination import (
    RemoteCoordination,
    Tenant,
    alive_nodes,
    create_tenant,
    list_tenants,
    newest_map,
    publish_map,
    suspend_tenant,
)
from coffre.cluster.errors import CoffreError
from coffre.cluster.health import present_nodes
from coffre.cluster.identity import read_certificate
from coffre.cluster.map import MAP_BYTES_MAX, ClusterMap, NodeState, read_map, verify_map
from coffre.cluster.membership import (
    Restored,
    VerifiedMap,
    check_one_store,
    keep_where_allowed,
    learn_map,
    restore_newest_map,
)
from coffre.cluster.transport import GrpcTransport

__all__ = ["COMMANDS"]

_T = TypeVar("_T")
_FILE = click.Path(path_type=Path, dir_okay=False)


class _Session:
    """An operator's connections for one command."""

    def __init__(self, config_path: Path | None) -> None:
        self.clock = SystemClock()
        config = load_operator_config(find_operator_config(config_path), self.clock)
        self.map_path, tls = config.map_path, config.tls
        self.map, self.signed = read_map(self.map_path, tls.authority)
        self.authority = read_certificate(tls.authority)
        self.transport = GrpcTransport(self.map, tls)
        self.coordination = RemoteCoordination(self.transport)

    async def learn(self) -> None:
        """Work on the newest map that a node has, and keep it: the coordinators that the file names may be gone."""
        try:
            self.map = await learn_map(self.transport, self.map, self.map_path, self.authority)
        except CoffreError as error:
            click.echo(f"coffre: this works on the map of {self.map_path}: {error}", err=True)

    async def current(self) -> ClusterMap:
        """The newest map of coordination, or this one while it has none."""
        newest = await newest_map(self.coordination)
        if newest is not None and newest.epoch > self.map.epoch:
            await self.take(VerifiedMap(verify_map(newest.signed, self.authority), newest.signed))
        return self.map

    async def take(self, found: VerifiedMap) -> None:
        """Work on a newer map, and keep it."""
        self.map = found.map
        await keep_where_allowed(self.map_path, found)
        await self.transport.update_map(found.map)


def _run(
    config_path: Path | None,
    work: Callable[[_Session], Awaitable[_T]],
    *,
    learning: bool = True,
) -> _T:
    """`learning`: by the newest map that nodes have; else by the file's, whatever they say."""

    async def connected() -> _T:
        session = _Session(config_path)
        try:
            if learning:
                await session.learn()
            await check_one_store(session.transport, session.map)
            return await work(session)
        finally:
            await session.transport.close()

    return asyncio.run(connected())


@click.command("publish")
@click.argument("new", metavar="NEW_MAP", type=_FILE)
@operator_option
@one_line_errors
def publish(new: Path, config_path: Path | None) -> None:
    """Make NEW_MAP, signed and one epoch above the newest, the map of the cluster. Nodes adopt it within a second."""
    signed = read_file(new, MAP_BYTES_MAX)

    async def work(session: _Session) -> int:
        await _check_coordinators(session, verify_map(signed, session.authority))
        published = await publish_map(
            session.coordination, signed, session.authority, session.clock.unixtime_ms()
        )
        await session.take(VerifiedMap(published, signed))
        return published.epoch

    click.echo(f"epoch {_run(config_path, work)} is published")


async def _check_coordinators(session: _Session, candidate: ClusterMap) -> None:
    """Raise unless the coordinators that a map names, as far as they are known here and answer, serve one store."""
    known = {node.number for node in present_nodes(session.map)}
    named = tuple(number for number in candidate.coordinators if number in known)
    await check_one_store(session.transport, replace(candidate, coordinators=named))


@click.command("nodes")
@operator_option
@one_line_errors
def nodes(config_path: Path | None) -> None:
    """Which nodes of the map have said lately that they are alive, and at which epoch they serve."""

    async def work(session: _Session) -> list[str]:
        current = await session.current()
        alive = await alive_nodes(session.coordination)
        lines = []
        for node in current.nodes:
            if node.state is not NodeState.REMOVED:
                status = alive.get(node.number)
                said = "silent" if status is None else f"alive at epoch {status.epoch}, {status.version}"
                lines.append(f"{node.number:>6}  {node.node_id:<24} {said}")
        return lines

    for line in _run(config_path, work):
        click.echo(line)


@click.group("tenants", cls=CommandGroup)
def tenants() -> None:
    """The list of tenants: who is expected, and whose certificates nodes refuse for now."""


@tenants.command("add")
@click.argument("name")
@operator_option
@one_line_errors
def add(name: str, config_path: Path | None) -> None:
    """Enter a tenant."""

    async def work(session: _Session) -> None:
        await create_tenant(session.coordination, Tenant(name, session.clock.unixtime_ms()))

    _run(config_path, work)
    click.echo(f"{name} is entered")


@tenants.command("suspend")
@click.argument("name")
@click.option("--lift", is_flag=True, help="Take the suspension back.")
@click.option("--force", is_flag=True, help="Also a tenant that nobody knows.")
@operator_option
@one_line_errors
def suspend(name: str, lift: bool, force: bool, config_path: Path | None) -> None:
    """Let nodes refuse a tenant's certificates, within a second and until that is taken back.

    A tenant that is not in the list, and has shown no certificate to a node lately, is refused: it may be a slip.
    """

    async def work(session: _Session) -> Taken:
        nodes = present_nodes(await session.current())
        if not force:
            await check_known(session.coordination, session.transport, nodes, name)
        now_ms = session.clock.unixtime_ms()
        await suspend_tenant(session.coordination, name, suspended=not lift, unixtime_ms=now_ms)
        return await await_taken(session.transport, nodes, name, suspended=not lift, clock=session.clock)

    taken = _run(config_path, work)
    count = f"{len(taken.nodes)} of {len(taken.nodes) + len(taken.waiting)} nodes"
    click.echo(f"{name}: {count} {'serve it again' if lift else 'refuse it'}")
    for node_id, why in taken.waiting.items():
        click.echo(f"coffre: {node_id} {why}; it follows when it reaches coordination", err=True)


@tenants.command("list")
@operator_option
@one_line_errors
def list_command(config_path: Path | None) -> None:
    """All tenants."""

    async def work(session: _Session) -> list[Tenant]:
        return await list_tenants(session.coordination)

    for tenant in _run(config_path, work):
        click.echo(f"{tenant.name}{'  suspended' if tenant.suspended else ''}")


@click.command("restore-coordination")
@operator_option
@one_line_errors
def restore(config_path: Path | None) -> None:
    """Fill an empty coordination store again: the newest signed map that you or any node keeps becomes the current one.

    The map that was published last may be in your file alone (`map` in operator.toml), so have the newest one there.
    """

    async def work(session: _Session) -> tuple[Restored, Path]:
        kept = VerifiedMap(session.map, session.signed)
        restored = await restore_newest_map(
            session.coordination, session.transport, kept, session.authority, session.clock
        )
        return restored, session.map_path

    done, map_path = _run(config_path, work, learning=False)
    if done.newest_of_nodes < done.map.epoch:
        click.echo(
            f"epoch {done.map.epoch} is restored from {map_path}; "
            f"the newest that {done.answered} nodes keep is {done.newest_of_nodes}"
        )
    else:
        click.echo(f"epoch {done.map.epoch} is restored, the newest that {done.answered} nodes keep")


COMMANDS: tuple[click.Command, ...] = (publish, nodes, tenants, restore)
