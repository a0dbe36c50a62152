"""`coffre repair`, `coffre scrub` and `coffre doctor`: what an operator sees and does of a running cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
from coffre.cluster.admin.cli_errors import one_line_errors
from coffre.cluster.admin.groups import CommandGroup
from coffre.cluster.admin.operator import (
    OperatorConfig,
    find_operator_config,
    learned,
    load_operator_config,
    operator_option,
    own_files,
)
from coffre.cluster.admin.tables import print_table
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import CoffreError, Unavailable
from coffre.cluster.health import Level, NodeReport, examine
from coffre.cluster.map import NodeState
from coffre.cluster.transport import GrpcTransport
from coffre.proto import coffre_pb2 as pb
from google.protobuf.json_format import MessageToDict
from rich.table import Table

__all__ = ["doctor", "repair", "scrub"]

TIMEOUT_SECONDS = 5.0
_T = TypeVar("_T")
_json = click.option("--json", "as_json", is_flag=True, help="For machines.")
_verbose = click.option(
    "--verbose", is_flag=True, help="With --json: the numbers of all partitions that have moved, too."
)
_nodes = click.option("--node", "node_ids", multiple=True, help="Only these nodes, by id.")


def _ask_all(
    config_path: Path | None,
    node_ids: tuple[str, ...],
    call: Callable[[GrpcTransport, int], Awaitable[_T]],
) -> tuple[OperatorConfig, dict[int, _T | CoffreError]]:
    """Call every node that is not removed; an error stands for the answer of one that gives none.

    By the newest map that one of them has: the operator's file may be old.
    """
    config = load_operator_config(find_operator_config(config_path), SystemClock())

    async def ask() -> tuple[OperatorConfig, dict[int, _T | CoffreError]]:
        transport = GrpcTransport(config.cluster_map, config.tls)

        async def one(number: int) -> _T | CoffreError:
            try:
                return await call(transport, number)
            except CoffreError as error:
                return error

        try:
            newest = await _learned(config, transport)
            numbers = _numbers(newest, node_ids)
            answers = await asyncio.gather(*map(one, numbers))
            return newest, dict(zip(numbers, answers, strict=True))
        finally:
            await transport.close()

    return asyncio.run(ask())


async def _learned(config: OperatorConfig, transport: GrpcTransport) -> OperatorConfig:
    """What is wrong with the nodes' maps keeps nobody from looking at the nodes."""
    try:
        return await learned(config, transport)
    except CoffreError as error:
        click.echo(f"coffre: this works on the map of {config.map_path}: {error}", err=True)
        return config


def _numbers(config: OperatorConfig, node_ids: tuple[str, ...]) -> list[int]:
    known = {node.node_id for node in config.cluster_map.nodes}
    for node_id in node_ids:
        if node_id not in known:
            raise click.UsageError(f"the map has no node {node_id}")
    return [
        node.number
        for node in config.cluster_map.nodes
        if node.state is not NodeState.REMOVED and (not node_ids or node.node_id in node_ids)
    ]


def _shown(
    config: OperatorConfig,
    answers: dict[int, pb.RepairStatusReply | CoffreError],
    as_json: bool,
    table: Table,
    *,
    verbose: bool = False,
) -> None:
    """Print one row for each node. Raises `Unavailable` when none answered."""
    if as_json:
        found = {
            config.cluster_map.node(number).node_id: _as_dict(answer, verbose)
            for number, answer in answers.items()
        }
        click.echo(json.dumps(found, indent=2))
    else:
        print_table(table)
    if answers and all(isinstance(answer, CoffreError) for answer in answers.values()):
        raise Unavailable("no node answers")


def _reason(config: OperatorConfig, number: int, error: CoffreError) -> str:
    """Why a node gives no answer, for a line that begins with its name."""
    return str(error).removeprefix(f"node {config.cluster_map.node(number).node_id}: ")


def _as_dict(answer: pb.RepairStatusReply | CoffreError, verbose: bool) -> dict[str, object]:
    """A node's answer for machines: of the partitions that it has moved, which may be thousands, the number."""
    if isinstance(answer, CoffreError):
        return {"error": str(answer)}
    row: dict[str, object] = MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    row["partitions_moved"] = len(answer.moved)
    if not verbose:
        del row["moved"]
    return row


# ------------------------------------------------------------------ repair


@click.group(cls=CommandGroup)
def repair() -> None:
    """What the nodes still have to rebuild, and how fast they may."""


@repair.command("status")
@operator_option
@_nodes
@_json
@_verbose
@one_line_errors
def repair_status(config_path: Path | None, node_ids: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """Show every node's repair: objects by spare shards, what is left, and what is parked."""

    async def call(transport: GrpcTransport, number: int) -> pb.RepairStatusReply:
        return await transport.repair_status(number, TIMEOUT_SECONDS)

    config, answers = _ask_all(config_path, node_ids, call)
    _shown(config, answers, as_json, _repair_table(config, answers), verbose=verbose)


def _repair_table(config: OperatorConfig, answers: dict[int, pb.RepairStatusReply | CoffreError]) -> Table:
    table = Table(
        "node", "state", "in step", "to rebuild", "left", "ETA", "parked", "held for others", "rebuilt"
    )
    for number, answer in answers.items():
        node_id = config.cluster_map.node(number).node_id
        if isinstance(answer, CoffreError):
            table.add_row(node_id, "does not answer")
            continue
        needs = ", ".join(f"{need.objects:,} at k{need.spare_shards:+d}" for need in answer.queue) or "-"
        parked = "; ".join(f"{parked.objects:,}: {parked.reason}" for parked in answer.parked) or "-"
        state = "paused" if answer.paused else f"{answer.bytes_per_second / 1e6:,.0f} MB/s at most"
        table.add_row(
            node_id,
            state,
            f"{answer.partitions_in_step}/{answer.partitions}",
            needs,
            f"{answer.bytes_left / 1e6:,.1f} MB" if answer.queue else "-",
            _duration(answer.seconds_left) if answer.queue else "-",
            parked,
            f"{answer.held_for_others:,}",
            f"{answer.restored_objects:,}",
        )
    return table


def _duration(seconds: float) -> str:
    if seconds < 0:
        return "not known yet"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _control(
    config_path: Path | None, node_ids: tuple[str, ...], request: pb.RepairControlRequest, as_json: bool
) -> None:
    async def call(transport: GrpcTransport, number: int) -> pb.RepairStatusReply:
        return await transport.repair_control(number, request, TIMEOUT_SECONDS)

    config, answers = _ask_all(config_path, node_ids, call)
    _shown(config, answers, as_json, _repair_table(config, answers))


@repair.command("start")
@operator_option
@_nodes
@click.option("--mb-per-second", type=click.IntRange(1), help="The cap from now on, until the node restarts.")
@_json
@one_line_errors
def repair_start(
    config_path: Path | None, node_ids: tuple[str, ...], mb_per_second: int | None, as_json: bool
) -> None:
    """Let nodes repair, and set how fast they may."""
    rate = (mb_per_second or 0) * 1_000_000
    request = pb.RepairControlRequest(action=pb.REPAIR_ACTION_START, bytes_per_second=rate)
    _control(config_path, node_ids, request, as_json)


@repair.command("pause")
@operator_option
@_nodes
@_json
@one_line_errors
def repair_pause(config_path: Path | None, node_ids: tuple[str, ...], as_json: bool) -> None:
    """Let nodes rest after the round that is under way. They start again when told, or when they restart."""
    request = pb.RepairControlRequest(action=pb.REPAIR_ACTION_PAUSE)
    _control(config_path, node_ids, request, as_json)


# ------------------------------------------------------------------ scrub


@click.group(cls=CommandGroup)
def scrub() -> None:
    """How far each node has come with reading everything it holds."""


@scrub.command("status")
@operator_option
@_nodes
@_json
@_verbose
@one_line_errors
def scrub_status(config_path: Path | None, node_ids: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """Show every node's scrub: position, what it read in this pass, and damage it found."""

    async def call(transport: GrpcTransport, number: int) -> pb.RepairStatusReply:
        return await transport.repair_status(number, TIMEOUT_SECONDS)

    config, answers = _ask_all(config_path, node_ids, call)
    table = Table("node", "done", "began", "read", "damaged", "last whole pass")
    for number, answer in answers.items():
        node_id = config.cluster_map.node(number).node_id
        if isinstance(answer, CoffreError):
            table.add_row(node_id, "does not answer")
            continue
        table.add_row(
            node_id,
            f"{answer.scrub_done:.1%}",
            _ago(answer.scrub_started_unixtime_ms),
            f"{answer.scrub_bytes / 1e6:,.1f} MB",
            f"{answer.scrub_damaged:,}",
            _ago(answer.scrub_finished_unixtime_ms),
        )
    _shown(config, answers, as_json, table, verbose=verbose)


def _ago(unixtime_ms: int) -> str:
    if not unixtime_ms:
        return "-"
    hours = (SystemClock().unixtime_ms() - unixtime_ms) / 3_600_000
    return f"{hours:.1f} h ago" if hours < 72 else f"{hours / 24:.0f} days ago"


# ------------------------------------------------------------------ doctor


@click.command()
@operator_option
@_json
@click.option(
    "--fail-on",
    type=click.Choice(["warning", "error"]),
    default="error",
    show_default=True,
    help="What ends with exit status 1: a warning is what will stop service if nobody acts, an error is what does.",
)
@one_line_errors
def doctor(config_path: Path | None, as_json: bool, fail_on: str) -> None:
    """Look for what is wrong, or soon will be: nodes, disks, clocks, versions, coordination, certificates."""
    clock = SystemClock()

    async def call(transport: GrpcTransport, number: int) -> NodeReport:
        before = clock.unixtime_ms()
        status = await transport.status(number, TIMEOUT_SECONDS)
        middle_ms = (before + clock.unixtime_ms()) / 2
        repairs = await transport.repair_status(number, TIMEOUT_SECONDS)
        return NodeReport(status, repairs, status.unixtime_ms - middle_ms)

    config, answers = _ask_all(config_path, (), call)
    reports = {
        number: NodeReport(error=_reason(config, number, answer))
        if isinstance(answer, CoffreError)
        else answer
        for number, answer in answers.items()
    }
    findings = examine(config.cluster_map, reports, clock.unixtime_ms(), own_files(config.tls))
    if as_json:
        click.echo(json.dumps([[f.level.name.lower(), f.subject, f.text] for f in findings], indent=2))
    else:
        table = Table("", "about", "finding")
        for finding in findings:
            table.add_row(finding.level.name.lower(), finding.subject, finding.text)
        if findings:
            print_table(table)
        click.echo(f"{len(reports)} nodes asked, {len(findings)} finding{'' if len(findings) == 1 else 's'}")
    if any(finding.level >= Level[fail_on.upper()] for finding in findings):
        raise SystemExit(1)
