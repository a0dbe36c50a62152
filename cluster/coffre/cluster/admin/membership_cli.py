"""`coffre cluster add-node | drain | replace | remove | set-capacity | set-policy | apply | status`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from coffre.cluster.admin.access import Access, open_access
from coffre.cluster.admin.asking import confirmed
from coffre.cluster.admin.cli_errors import one_line_errors
from coffre.cluster.admin.leaving import await_empty, holding_line
from coffre.cluster.admin.membership_report import (
    Plan,
    movement_table,
    node_table,
    plan_as_dict,
    plan_lines,
    progress_as_dict,
    progress_line,
    reports_as_dicts,
)
from coffre.cluster.admin.tables import print_table
from coffre.cluster.errors import InvalidArgument
from coffre.cluster.health import SurveyedNode, live_bytes, rival_stores
from coffre.cluster.map import ClusterMap, Domain, NodeState
from coffre.cluster.membership import (
    MapSigner,
    Move,
    MoveProgress,
    NodeOffer,
    add_node,
    ask_reports,
    check_one_store,
    check_stores,
    drain_node,
    find_node,
    follow_move,
    movement_between,
    offered_attributes,
    parse_capacity,
    parse_policy,
    progress_of,
    remove_node,
    renew_node,
    replace_node,
    set_capacity,
    set_coordinators,
    set_policy,
)
from rich.console import Console

__all__ = ["COMMANDS"]

Wish = Callable[[ClusterMap, Access], Awaitable[ClusterMap]]


# ------------------------------------------------------------------ a change, from wish to end


@dataclass(frozen=True, slots=True)
class Manner:
    """The options that every change has."""

    config: Path | None
    dry_run: bool
    yes: bool
    as_json: bool
    waits: bool = True
    coordination_lost: bool = False
    is_cure: bool = False  # of a cluster with two coordination stores
    leaving: str = ""  # a node that is drained
    empty_before: str = ""  # a node that is waited for until it holds nothing, before the change
    empty_after: str = ""  # or after it


def _change(name: str) -> Callable[[Callable[..., Wish]], click.Command]:
    """A command whose function gives the wish, from arguments of its own; `Any`: click decides what they are."""

    def decorate(function: Callable[..., Wish]) -> click.Command:
        @one_line_errors
        def run(
            config: Path | None, dry_run: bool, yes: bool, as_json: bool, no_wait: bool, **arguments: Any
        ) -> None:
            if as_json and not (dry_run or yes):
                raise InvalidArgument("--json asks nobody: say --dry-run or --yes with it")
            wait, lost = arguments.pop("wait", False), arguments.get("lost", False)
            if wait and (no_wait or lost):
                raise InvalidArgument("--wait goes with neither --no-wait nor --lost")
            node = arguments.get("node", "")
            manner = Manner(
                config,
                dry_run,
                yes,
                as_json,
                not no_wait,
                arguments.get("coordination_lost", False),
                is_cure=name == "set-coordinators",
                leaving=node if name in ("drain", "replace") and not lost else "",
                empty_before=node if wait and name == "remove" and not dry_run else "",
                empty_after=node if wait and name != "remove" else "",
            )
            asyncio.run(_carry_out(function(**arguments), manner))

        run.__doc__ = function.__doc__
        parameters = list(reversed(getattr(function, "__click_params__", [])))
        return click.Command(name, callback=run, params=[*parameters, *_manner()], help=function.__doc__)

    return decorate


def _manner() -> list[click.Parameter]:
    return [
        _config_option(),
        click.Option(["--dry-run"], is_flag=True, help="Show what would move, and change nothing."),
        click.Option(["--yes"], is_flag=True, help="Do not ask."),
        click.Option(["--json", "as_json"], is_flag=True, help="For machines."),
        click.Option(
            ["--no-wait"], is_flag=True, help="Do not wait until data has moved; `apply` does, and ends it."
        ),
    ]


def _config_option() -> click.Option:
    return click.Option(
        ["--operator", "config"],
        type=click.Path(path_type=Path, dir_okay=False),
        help="operator.toml; else $COFFRE_OPERATOR_CONFIG, ./.coffre, ~/.config/coffre.",
    )


async def _carry_out(wish: Wish, manner: Manner) -> None:
    async with open_access(manner.config, coordination_lost=manner.coordination_lost) as access:
        current = await access.publisher.current()
        if manner.empty_before:
            if current.prior and find_node(current, manner.empty_before).state is NodeState.DRAINING:
                await _finish(access, current, manner, waits=True)
            await await_empty(access, manner.empty_before, _say)
            current = await access.publisher.current()
        if not manner.is_cure:
            await check_one_store(access.transport, current)
        proposed = await wish(current, access)
        changed = proposed is not current
        if changed:
            _show_plan(await _plan(access, current, proposed), manner)
            if manner.dry_run or not _agreed(manner):
                return
            current = await access.publish(proposed)
        elif manner.as_json:
            click.echo(json.dumps({"changed": False, "epoch": current.epoch}))
        else:
            click.echo(f"epoch {current.epoch}: it is so already, nothing to change")
        if manner.dry_run:
            return
        has_moved = not current.prior
        if changed or current.prior or manner.coordination_lost:
            has_moved = await _finish(access, current, manner, waits=bool(manner.empty_after))
        if manner.empty_after:
            await await_empty(access, manner.empty_after, _say)
            click.echo(f"{manner.empty_after} holds nothing any more", err=manner.as_json)
        elif manner.leaving and has_moved and (line := await holding_line(access, manner.leaving)):
            _say(f"{line}; coffre cluster remove {manner.leaving} --wait does so when it can")


def _say(line: str) -> None:
    click.echo(line, err=True)


async def _plan(access: Access, current: ClusterMap, proposed: ClusterMap) -> Plan:
    movement = movement_between(current, proposed)
    known = live_bytes(await access.survey(current)) if movement.moved else {}
    return Plan(current, proposed, movement, movement.bytes_per_shard(known))


def _show_plan(plan: Plan, manner: Manner) -> None:
    if manner.as_json:
        click.echo(json.dumps({"changed": not manner.dry_run, "plan": plan_as_dict(plan)}, indent=2))
        return
    for line in plan_lines(plan):
        click.echo(line)
    if plan.movement.moved:
        print_table(movement_table(plan))


def _agreed(manner: Manner) -> bool:
    return manner.yes or confirmed("Go on?")


async def _finish(access: Access, current: ClusterMap, manner: Manner, *, waits: bool = False) -> bool:
    """Wait for the move that the map is in, if any, and end it. Returns whether nothing moves any more."""
    if not access.reaches_members:
        click.echo(
            f"epoch {current.epoch} is in {access.config.map_path}: carry it to every node and client",
            err=True,
        )
    if not current.prior:
        return True
    if not (waits or (access.reaches_members and manner.waits)):
        click.echo("let data move, and end the change with: coffre cluster apply", err=True)
        return False
    signer = MapSigner.load(access.config.tls, access.clock)
    finished = await follow_move(access.publisher, signer, access.reports, access.clock, _show_progress())
    click.echo(f"epoch {finished.epoch}: everything has moved", err=manner.as_json)
    return True


def _show_progress() -> Callable[[MoveProgress], None]:
    """Each state of the move once, on stderr: in place on a terminal, else a line for each percent."""
    console = Console(stderr=True)
    shown = ""

    def show(progress: MoveProgress) -> None:
        nonlocal shown
        percent = f"{progress.epoch} {progress.done * 100 // max(progress.total, 1)} {len(progress.silent)}"
        if console.is_terminal:  # in place: a line that is cut is shown again, one that is wrapped piles up
            line = progress_line(progress)
            line = line if progress.is_finished else line[: console.width - 1]
            click.echo(f"\r\x1b[K{line}", nl=progress.is_finished, err=True)
        elif percent != shown:
            click.echo(progress_line(progress), err=True)
        shown = percent

    return show


# ------------------------------------------------------------------ commands


_OFFER = "CERT=HOST:PORT=CAPACITY"


@_change("add-node")
@click.argument("offer", metavar=_OFFER)
def _add_node(offer: str) -> Wish:
    """Let a node join, and move its share of the data to it. CERT is the node's certificate."""

    async def wish(current: ClusterMap, access: Access) -> ClusterMap:
        found = NodeOffer.parse(offer, Path())
        attributes = offered_attributes(found.certificate, access.config.tls.authority, access.clock)
        return add_node(current, attributes, found.address, found.capacity_bytes)

    return wish


_wait = click.option(
    "--wait", is_flag=True, help="Also until NODE holds nothing any more, which `remove` asks for."
)


@_change("drain")
@click.argument("node")
@_wait
def _drain(node: str) -> Wish:
    """Move everything away from NODE, which serves on until it is removed. `add-node` takes it back."""

    async def wish(current: ClusterMap, access: Access) -> ClusterMap:
        return drain_node(current, node)

    return wish


@_change("replace")
@click.argument("node")
@click.argument("offer", metavar=_OFFER)
@click.option("--lost", is_flag=True, help="NODE is gone for good, with what it held.")
@_wait
def _replace(node: str, offer: str, lost: bool) -> Wish:
    """Let another node take the place of NODE, which then is as after `drain` (with --lost: as after `remove`)."""

    async def wish(current: ClusterMap, access: Access) -> ClusterMap:
        found = NodeOffer.parse(offer, Path())
        attributes = offered_attributes(found.certificate, access.config.tls.authority, access.clock)
        return replace_node(current, node, attributes, found.address, found.capacity_bytes, lost=lost)

    return wish


@_change("remove")
@click.argument("node")
@click.option("--lost", is_flag=True, help="NODE is gone for good, with what it held.")
@click.option("--wait", is_flag=True, help="Wait until NODE holds nothing any more.")
def _remove(node: str, lost: bool) -> Wish:
    """Take NODE out of the map for ever. Without --lost it must have been drained, and say that it holds nothing."""

    async def wish(current: ClusterMap, access: Access) -> ClusterMap:
        find_node(current, node)
        reports = [] if lost else await access.survey(current, (node,))
        status = reports[0].status if reports else None
        return remove_node(current, node, shards_held=None if status is None else status.shards, lost=lost)

    return wish


@_change("renew")
@click.argument("certificate", metavar="CERT", type=click.Path(path_type=Path, dir_okay=False))
def _renew(certificate: Path) -> Wish:
    """Shut out every certificate of a node but those of CERT's generation.

    Then put CERT beside its key, and restart the node.
    """

    async def wish(current: ClusterMap, access: Access) -> ClusterMap:
        attributes = offered_attributes(certificate, access.config.tls.authority, access.clock)
        return renew_node(current, attributes)

    return wish


@_change("set-capacity")
@click.argument("node")
@click.argument("capacity")
def _set_capacity(node: str, capacity: str) -> Wish:
    """Give NODE another CAPACITY, such as 8TB, and so another share of the data."""

    async def wish(current: ClusterMap, access: Access) -> ClusterMap:
        return set_capacity(current, node, parse_capacity(capacity))

    return wish


@_change("set-coordinators")
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@click.option(
    "--coordination-lost",
    is_flag=True,
    help="The present coordination is gone for good. Then carry the new map to NODE.",
)
def _set_coordinators(nodes: tuple[str, ...], coordination_lost: bool) -> Wish:
    """Let these nodes serve coordination, and no others. Each has a [coordination] section and runs with it.

    Several share one etcd; a node with a store of its own (embedded) is the only one.
    """

    async def wish(current: ClusterMap, access: Access) -> ClusterMap:
        proposed = set_coordinators(current, nodes)
        if proposed is not current:
            await check_stores(access.transport, current, proposed, coordination_lost=coordination_lost)
            await check_one_store(access.transport, proposed)  # an embedded store and a copy of it are two
        return proposed

    return wish


@_change("set-policy")
@click.argument("bucket", metavar="TENANT/BUCKET")
@click.argument("policy")
@click.option("--new", is_flag=True, help="POLICY is K+M, and the map may not have it yet.")
@click.option(
    "--survives",
    type=click.Choice([domain.name.lower() for domain in Domain]),
    default="site",
    show_default=True,
    help="With --new: what may be lost as a whole.",
)
@click.option("--jurisdiction", "jurisdictions", multiple=True, default=("FR",), show_default=True)
@click.option("--operator-cap", type=click.IntRange(0), default=0, help="Shards of one object per operator.")
@click.option("--versions-kept", type=click.IntRange(1), default=1, show_default=True)
def _set_policy(
    bucket: str,
    policy: str,
    new: bool,
    survives: str,
    jurisdictions: tuple[str, ...],
    operator_cap: int,
    versions_kept: int,
) -> Wish:
    """Give a bucket another storage policy, for what is written from now on.

    What is there is coded anew by who has the tenant's keys: `coffre bucket recode`.
    """
    tenant, slash, name = bucket.partition("/")
    if not slash:
        raise InvalidArgument(f"{bucket!r} is not a bucket: TENANT/BUCKET")
    domain = Domain[survives.upper()]
    wanted = parse_policy(policy, domain, jurisdictions, operator_cap, versions_kept) if new else None

    async def wish(current: ClusterMap, access: Access) -> ClusterMap:
        return set_policy(current, tenant, name, policy, wanted)

    return wish


@click.command("apply")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@one_line_errors
def _apply(config: Path | None, as_json: bool) -> None:
    """Wait until everything has moved, and end the change that the map is in. Nothing else is changed."""

    async def run() -> None:
        async with open_access(config) as access:
            current = await access.publisher.current()
            if not current.prior:
                click.echo(f"epoch {current.epoch}: no change is under way")
                return
            await _finish(access, current, Manner(config, False, True, as_json), waits=True)

    asyncio.run(run())


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@one_line_errors
def _status(config: Path | None, as_json: bool) -> None:
    """Show the map, the move that it is in, and every node."""

    async def run() -> None:
        async with open_access(config) as access:
            current, wrong = await access.known()
            nodes = await access.survey(current)
            statuses = {one.node.number: one.status for one in nodes if one.status is not None}
            rivals = rival_stores(current, statuses)
            progress = None
            if current.prior:
                move = Move(current)
                progress = progress_of(move, await ask_reports(move, access.reports))
        (_print_json if as_json else _print_status)(current, nodes, progress)
        if wrong:
            click.echo(f"this may not be the newest map: {wrong}", err=True)
        if rivals:
            click.echo(f"there are two coordination stores: {rivals}", err=True)

    asyncio.run(run())


def _print_json(current: ClusterMap, nodes: list[SurveyedNode], progress: MoveProgress | None) -> None:
    status = {
        "cluster_id": current.cluster_id,
        "epoch": current.epoch,
        "prior_epochs": [prior.epoch for prior in current.prior],
        "move": progress_as_dict(progress) if progress is not None else None,
        "nodes": reports_as_dicts(current, nodes),
    }
    click.echo(json.dumps(status, indent=2))


def _print_status(current: ClusterMap, nodes: list[SurveyedNode], progress: MoveProgress | None) -> None:
    click.echo(f"cluster {current.cluster_id}, epoch {current.epoch}, {current.partitions} partitions")
    if progress is None:
        click.echo("no change is under way")
    else:
        consulted = ", ".join(str(prior.epoch) for prior in current.prior)
        click.echo(f"data is moving; prior epochs still consulted: {consulted}")
        click.echo(progress_line(progress))
    print_table(node_table(current, nodes, progress))
    newer = [one.node_id for one in nodes if one.status is not None and one.status.epoch > current.epoch]
    if newer:
        click.echo(f"nodes with a newer map than this one: {', '.join(newer)}")
    for one in nodes:
        if one.health.is_set_aside:
            reason = one.error.removeprefix(f"node {one.node_id}: ")
            click.echo(f"{one.node_id} is {one.health.value}{': ' if reason else ''}{reason}")


for _command in (_apply, _status):
    _command.params.append(_config_option())

COMMANDS = (
    *(_add_node, _drain, _replace, _remove, _renew, _set_capacity, _set_coordinators, _set_policy),
    *(_apply, _status),
)
