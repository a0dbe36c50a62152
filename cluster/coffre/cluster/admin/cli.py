"""`coffre cluster`: the signed map of a cluster; and `coffre pki`, from beside it."""

from __future__ import annotations

import json
from pathlib import Path

import click
from coffre.cluster.admin.cli_errors import one_line_errors
from coffre.cluster.admin.coordination_cli import COMMANDS as COORDINATION_COMMANDS
from coffre.cluster.admin.groups import CommandGroup
from coffre.cluster.admin.membership_cli import COMMANDS as MEMBERSHIP_COMMANDS
from coffre.cluster.admin.pki_cli import pki
from coffre.cluster.admin.tables import print_table
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import InvalidArgument
from coffre.cluster.map import ClusterMap, Domain, create_map_file, read_map, read_unverified_map
from coffre.cluster.membership import (
    OFFERED_PARTITIONS,
    NodeOffer,
    PolicyReport,
    form_map,
    parse_policy,
    survey,
)
from rich.table import Table

__all__ = ["cluster", "pki"]

_FILE = click.Path(path_type=Path, dir_okay=False)
_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of ca.crt, the certificates of all nodes, and the signer's certificate and key.",
)


@click.group(cls=CommandGroup)
def cluster() -> None:
    """The signed cluster map, and who is in it."""


for _command in (*MEMBERSHIP_COMMANDS, *COORDINATION_COMMANDS):
    cluster.add_command(_command)


@cluster.command("init")
@_directory
@click.option(
    "--node",
    "nodes",
    multiple=True,
    required=True,
    metavar="CERT=HOST:PORT=CAPACITY",
    help="A node: its certificate (a file, or a name in --dir), address, and capacity such as 4TB or 500GiB.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    required=True,
    metavar="K+M",
    help="A storage policy such as 4+2; the first is the default.",
)
@click.option(
    "--survives",
    type=click.Choice([domain.name.lower() for domain in Domain]),
    default="site",
    show_default=True,
    help="What may be lost as a whole.",
)
@click.option(
    "--jurisdiction",
    "jurisdictions",
    multiple=True,
    default=("FR",),
    show_default=True,
    help="Allowed country.",
)
@click.option("--operator-cap", type=click.IntRange(0), default=0, help="Shards of one object per operator.")
@click.option("--versions-kept", type=click.IntRange(1), default=1, show_default=True)
@click.option("--partitions", type=click.IntRange(1), default=OFFERED_PARTITIONS, show_default=True)
@click.option(
    "--signer", required=True, help="Name of the operator who signs, with certificate and key in --dir."
)
@click.option(
    "--coordinator",
    "coordinators",
    multiple=True,
    metavar="NODE_ID",
    help="A node that serves coordination; without any there are no conditional writes.",
)
@click.option(
    "--coordination",
    "kind",
    type=click.Choice(["embedded", "etcd"]),
    default="embedded",
    show_default=True,
    help="What [coordination] in their node.toml says: a store of one node's own, or an etcd that several share.",
)
@click.option("--out", type=_FILE, help="Where the map goes; cluster.map in --dir unless given.")
@one_line_errors
def cluster_init(
    directory: Path,
    nodes: tuple[str, ...],
    policies: tuple[str, ...],
    survives: str,
    jurisdictions: tuple[str, ...],
    operator_cap: int,
    versions_kept: int,
    partitions: int,
    signer: str,
    coordinators: tuple[str, ...],
    kind: str,
    out: Path | None,
) -> None:
    """Write the first map (epoch 1). What it says of nodes is read from their certificates."""
    if kind == "embedded" and len(coordinators) > 1:
        raise InvalidArgument(
            f"{', '.join(coordinators)} cannot share an embedded store: each would have one of its own, and half of "
            "the cluster would not hear of suspensions and maps. Name one --coordinator, or let them share an etcd and "
            "say --coordination etcd"
        )
    wanted = [
        parse_policy(text, Domain[survives.upper()], jurisdictions, operator_cap, versions_kept)
        for text in policies
    ]
    offers = [NodeOffer.parse(text, directory) for text in nodes]
    signed, cluster_map = form_map(directory, offers, wanted, partitions, signer, SystemClock(), coordinators)
    path = out or directory / "cluster.map"
    create_map_file(path, signed)
    click.echo(f"cluster {cluster_map.cluster_id}, epoch 1, {len(offers)} nodes: {path}")


@cluster.command("show")
@click.argument("map_file", metavar="MAP", type=_FILE)
@click.option("--authority", type=_FILE, help="Certificate of the authority; without it nothing is verified.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@one_line_errors
def cluster_show(map_file: Path, authority: Path | None, as_json: bool) -> None:
    """Print a map."""
    found = read_map(map_file, authority)[0] if authority else read_unverified_map(map_file)
    if as_json:
        click.echo(json.dumps(_as_dict(found, authority is not None), indent=2))
        return
    checked = "signature verified" if authority else "signature NOT verified (no --authority)"
    click.echo(f"cluster {found.cluster_id}, epoch {found.epoch}, {found.partitions} partitions, {checked}")
    served = ", ".join(found.node(number).node_id for number in found.coordinators)
    click.echo(f"coordinators: {served or 'none, so no conditional writes'}")
    table = Table("no", "node", "address", "server", "site", "operator", "country", "capacity", "state")
    for node in found.nodes:
        place = (node.server, node.site, node.operator, node.jurisdiction)
        capacity = f"{node.capacity_bytes / 1e9:,.1f} GB"
        table.add_row(str(node.number), node.node_id, node.address, *place, capacity, node.state.name.lower())
    print_table(table)
    table = Table("policy", "k+m", "survives", "countries", "operator cap", "versions")
    for policy in found.policies:
        name = f"{policy.name} (default)" if policy.name == found.default_policy else policy.name
        cap = str(policy.operator_cap or f"{policy.k - 1} with several operators")
        countries = ", ".join(policy.jurisdictions)
        survives = (
            f"{policy.m} nodes" if policy.survives is Domain.NODE else f"a {policy.survives.name.lower()}"
        )
        table.add_row(name, f"{policy.k}+{policy.m}", survives, countries, cap, str(policy.versions_kept))
    print_table(table)
    for one in found.bucket_policies:
        click.echo(f"bucket {one.tenant}/{one.bucket}: policy {one.policy}")
    if found.prior:
        click.echo(
            f"data is moving; still consulted: epochs {', '.join(str(one.epoch) for one in found.prior)}"
        )


def _as_dict(found: ClusterMap, verified: bool) -> dict[str, object]:
    """The map as JSON has it: the field names of coffre.v1.ClusterMap, and of prior maps their epochs."""
    nodes = [
        {
            "number": node.number,
            "node_id": node.node_id,
            "address": node.address,
            "server": node.server,
            "site": node.site,
            "operator": node.operator,
            "jurisdiction": node.jurisdiction,
            "capacity_bytes": node.capacity_bytes,
            "state": node.state.name.lower(),
        }
        for node in found.nodes
    ]
    policies = [
        {
            "name": policy.name,
            "k": policy.k,
            "m": policy.m,
            "jurisdictions": list(policy.jurisdictions),
            "survives": policy.survives.name.lower(),
            "operator_cap": policy.operator_cap,
            "versions_kept": policy.versions_kept,
        }
        for policy in found.policies
    ]
    return {
        "verified": verified,
        "cluster_id": found.cluster_id,
        "epoch": found.epoch,
        "partitions": found.partitions,
        "default_policy": found.default_policy,
        "coordinators": [found.node(number).node_id for number in found.coordinators],
        "nodes": nodes,
        "policies": policies,
        "prior_epochs": [prior.epoch for prior in found.prior],
        "bucket_policies": [
            {"tenant": one.tenant, "bucket": one.bucket, "policy": one.policy}
            for one in found.bucket_policies
        ],
    }


@cluster.command("verify")
@click.argument("map_file", metavar="MAP", type=_FILE)
@click.option("--authority", type=_FILE, required=True, help="Certificate of the authority (ca.crt).")
@one_line_errors
def cluster_verify(map_file: Path, authority: Path) -> None:
    """Check a map: signature, signer, and that every policy can be kept in every partition."""
    found = read_map(map_file, authority)[0]
    click.echo(f"cluster {found.cluster_id}, epoch {found.epoch}: signed by an operator of this authority")
    for policy in found.policies:
        _print_report(survey(found, policy))


def _print_report(report: PolicyReport) -> None:
    worst = ", ".join(f"{count} with one {domain}" for domain, count in report.shards_max.items())
    spare = report.spare_nodes_min
    stand_in = f"{spare} or more others can stand in" if spare else "no other node can stand in"
    click.echo(
        f"policy {report.policy.name}: all {report.partitions} partitions placed; at most {worst}; "
        f"{stand_in} for nodes that are down ({report.policy.m} suffice)"
    )
