"""`coffre bench scale`: clusters on paper."""

from __future__ import annotations

import json
from pathlib import Path

import click
from coffre.bench.files import check_writable, write_whole
from coffre.bench.invocation import output_console
from coffre.bench.scale import ScaleOptions, run_scale
from coffre.bench.scale_durability import FailureModel
from coffre.bench.scale_placement import JURISDICTION
from coffre.bench.scale_report import html_report, print_result
from coffre.cluster.admin import one_line_errors
from coffre.cluster.map import Domain, Policy
from coffre.cluster.membership import parse_policy
from rich.console import Console

__all__ = ["scale"]

_NODES_MAX = 1000
_NODES = (12, 30, 100, 300, 1000)
_PARTITIONS = (4096, 65536)


@click.command()
@click.option(
    "--nodes", multiple=True, type=click.IntRange(4, _NODES_MAX), default=_NODES, show_default=True,
    help="Size of a cluster; may be repeated.",
)  # fmt: skip
@click.option(
    "--policy", "policies", multiple=True, default=("4+2", "8+3"), show_default=True,
    help="k+m; may be repeated. Balance and movement are those of the first.",
)  # fmt: skip
@click.option(
    "--partitions", multiple=True, type=click.IntRange(1, 65536), default=_PARTITIONS, show_default=True,
    help="Of the map; may be repeated. All but the first only for balance.",
)  # fmt: skip
@click.option("--sites", default=6, show_default=True, type=click.IntRange(1, _NODES_MAX))
@click.option("--operators", default=3, show_default=True, type=click.IntRange(1, _NODES_MAX))
@click.option("--objects", default=10**9, show_default=True, type=click.IntRange(1, 10**12))
@click.option("--node-failures", default=0.04, show_default=True, help="Losses for good of a node, per year.")
@click.option(
    "--site-losses", default=0.002, show_default=True, help="Of a site with all its nodes, per year."
)
@click.option("--detection-hours", default=0.5, show_default=True, help="From a failure to the rebuild.")
@click.option("--repair-mb-per-s", default=50.0, show_default=True, help="That each node gives to repair.")
@click.option("--node-tb", default=8.0, show_default=True, help="Data on one node, TB of 10^12 bytes.")
@click.option("--cycles", default=20_000, show_default=True, type=click.IntRange(100, 10_000_000))
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, (1 << 32) - 1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML page, too.")
@one_line_errors
def scale(
    nodes: tuple[int, ...], policies: tuple[str, ...], partitions: tuple[int, ...], sites: int, operators: int,
    objects: int, node_failures: float, site_losses: float, detection_hours: float, repair_mb_per_s: float,
    node_tb: float, cycles: int, seed: int, as_json: bool, report: Path | None,
) -> None:  # fmt: skip
    """Balance, movement and durability of clusters that exist on paper alone. Two minutes as it is."""
    failures = FailureModel(
        node_failures, site_losses, detection_hours * 3600, repair_mb_per_s * 1e6, node_tb * 1e12
    )
    options = ScaleOptions(
        tuple(sorted(set(nodes))), tuple(map(_policy, dict.fromkeys(policies))), tuple(dict.fromkeys(partitions)),
        sites, operators, objects, failures, cycles, seed,
    )  # fmt: skip
    if report is not None:
        check_writable(report)
    with Console(stderr=True).status("") as status:
        result = run_scale(options, status.update)
    if as_json:
        click.echo(json.dumps(result.content(), indent=1, allow_nan=False))
    else:
        print_result(result, output_console())
    if report is not None:
        write_whole(report, html_report(result))
        click.echo(f"written to {report}", err=True)


def _policy(text: str) -> Policy:
    return parse_policy(text, Domain.SITE, (JURISDICTION,), 0, 1)
