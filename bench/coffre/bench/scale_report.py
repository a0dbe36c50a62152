"""A scale run for people: `coffre bench scale`, one HTML page that needs nothing else, its charts, and tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from coffre.bench.invocation import output_console
from coffre.bench.pages import COLOURS, Markup, render
from coffre.bench.scale import (
    JURISDICTION,
    Balance,
    Capacities,
    Durability,
    Movement,
    ScaleOptions,
    ScaleResult,
    assumptions,
    run_scale,
)
from coffre.bench.scale_durability import FailureModel
from coffre.cluster.admin import one_line_errors
from coffre.cluster.map import Domain, Policy
from coffre.cluster.membership import parse_policy
from coffre.cluster.version import __version__
from coffre.dev.files import check_writable, write_whole
from coffre.dev.tables import Table
from rich.console import Console

if TYPE_CHECKING:
    from coffre.bench.charts import Chart

__all__ = ["balance_chart", "durability_chart", "html_report", "print_result", "scale"]


def html_report(result: ScaleResult) -> str:
    """The page, complete."""
    options = result.options
    return render(
        "scale.html",
        title="Coffre on paper",
        size=f"{min(options.nodes):,} to {max(options.nodes):,} nodes, {options.objects:,} objects",
        policy=options.policies[0].name,
        facts=_facts(result),
        durability_chart=durability_chart(result.durabilities),
        durability=_durability_table(result.durabilities),
        balance_chart=balance_chart(result.balances),
        balance=_balance_table(result.balances),
        movement=_movement_table(result.movements),
        assumptions=assumptions(options),
        footer=_origin(result),
    )


def print_result(result: ScaleResult, console: Console) -> None:
    """Three tables, then the assumptions and the digest."""
    _durability_table(result.durabilities).show(console, "durability")
    _balance_table(result.balances).show(console, "\nbalance")
    _movement_table(result.movements).show(console, "\nmovement, of all shards")
    console.print("\nAssumptions", style="bold")
    for line in assumptions(result.options):
        console.print(f"- {line}", highlight=False)
    console.print(_origin(result), soft_wrap=True, highlight=False)


def _origin(result: ScaleResult) -> str:
    return (
        f"coffre {__version__}, seed {result.options.seed}; SHA-256 of the rows {result.content()['digest']}"
    )


def _facts(result: ScaleResult) -> list[tuple[str, str, str]]:
    """What, how much, and of what."""
    largest = max(result.options.nodes)
    worst = max(result.durabilities, key=lambda one: one.loss_probability)
    fullest = next(one for one in result.balances if one.layout.nodes == largest)
    even = max((one for one in result.balances if one.layout.nodes == largest), key=lambda one: one.usable)
    excess = max(one.moved / one.minimum for one in result.movements if one.minimum)
    usable = f"Usable at {largest:,} nodes"
    return [
        (
            "Highest probability of a loss",
            f"{worst.loss_probability:.1e}",
            f"in a year: {worst.nodes:,} nodes, {worst.policy}",
        ),
        (usable, f"{fullest.usable:.0%}", f"with {fullest.layout.partitions:,} partitions"),
        (
            f"{usable} at best",
            f"{even.usable:.0%}",
            f"{even.layout.partitions:,} partitions, {even.layout.capacities.value} nodes",
        ),
        ("Moved, of what has to move", f"{excess:.3f} x", "when one node joins or leaves, at most"),
    ]


def _balance_table(rows: Sequence[Balance]) -> Table:
    heads = (
        *("nodes", "partitions", "capacities", "shards per node, least", "most", "fullest / mean"),
        *("emptiest / mean", "fullest / mean, with objects", "usable", "spread by objects"),
    )
    return Table(
        heads,
        [
            (
                *(f"{row.layout.nodes:,}", f"{row.layout.partitions:,}", row.layout.capacities.value),
                *(f"{row.shards_min:,}", f"{row.shards_max:,}"),
                *(f"{row.partitions_max_over_mean:.3f}", f"{row.partitions_min_over_mean:.3f}"),
                *(f"{row.objects_max_over_mean:.3f}", f"{row.usable:.1%}", f"{row.object_spread:.1e}"),
            )
            for row in rows
        ],
    )


def _movement_table(rows: Sequence[Movement]) -> Table:
    heads = ("nodes", "change", "moved", "had to move", "ratio", "fair share", "if rank were index")
    return Table(
        heads,
        [
            (
                *(f"{row.layout.nodes:,}", row.change, f"{row.moved:.4%}", f"{row.minimum:.4%}"),
                f"{row.moved / row.minimum:.3f}" if row.minimum else "",
                *(f"{row.fair:.4%}", f"{row.by_rank:.3%}"),
            )
            for row in rows
        ],
    )


def _durability_table(rows: Sequence[Durability]) -> Table:
    """The column of exact solutions only where there is one."""
    heads = (
        *("nodes", "policy", "site losses", "repair of a node", "loss of any, 1 year", "± 1 s.e."),
        *("objects lost, 1 year", "± 1 s.e.", "Markov: loss at most", "Markov: objects", "exact"),
    )
    width = len(heads) - all(row.exact_loss_probability is None for row in rows)
    return Table(heads[:width], [_durability_cells(row)[:width] for row in rows])


def _durability_cells(row: Durability) -> tuple[str, ...]:
    found = row.estimate
    return (
        *(f"{row.nodes:,}", row.policy),
        f"{row.site_losses_per_year:g}" if row.site_losses_per_year else "none",
        f"{row.repair_seconds / 3600:.1f} h",
        f"{row.loss_probability:.2e}" if found.loss_cycles else "none found",
        f"{found.losses_error:.0%}" if found.loss_cycles else "",
        f"{row.objects_lost_per_year:.2e}" if found.loss_cycles else "none found",
        f"{found.groups_error:.0%}" if found.loss_cycles else "",
        *(f"{row.independent_loss_probability:.2e}", f"{row.independent_objects_lost_per_year:.2e}"),
        "" if row.exact_loss_probability is None else f"{row.exact_loss_probability:.2e}",
    )


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def durability_chart(rows: Sequence[Durability]) -> Markup | None:
    """The probability of losing any object within a year; None when no loss was found in any case."""
    found = [row for row in rows if row.loss_probability > 0]
    if not found:
        return None
    chart = _by_nodes("probability of losing any object", "probability", {row.nodes for row in found})
    policies = dict.fromkeys(row.policy for row in rows)
    for colour, policy in zip(COLOURS, policies, strict=False):
        for with_sites, style in ((True, "-"), (False, ":")):
            chosen = [r for r in found if r.policy == policy and bool(r.site_losses_per_year) == with_sites]
            nodes, values = [row.nodes for row in chosen], [row.loss_probability for row in chosen]
            errors = [2 * row.estimate.losses_error for row in chosen]
            pairs = list(zip(values, errors, strict=True))
            chart.whiskers(
                nodes,
                [value * max(0.1, 1 - error) for value, error in pairs],
                [min(1.0, value * (1 + error)) for value, error in pairs],
                colour,
            )
            label = f"{policy}, {'nodes and sites' if with_sites else 'nodes alone'}"
            chart.line(nodes, values, colour, label=label, style=style)
    chart.logarithmic("y", [], lambda value: "10" + f"{math.log10(value):.0f}".translate(_SUPERSCRIPTS))
    chart.legend()
    return Markup(chart.svg())


def balance_chart(rows: Sequence[Balance]) -> Markup:
    """How full the fullest node is, for each number of partitions and each kind of capacities."""
    chart = _by_nodes("fullest node over the mean", "fullest / mean", {row.layout.nodes for row in rows})
    kinds = dict.fromkeys((row.layout.partitions, row.layout.capacities) for row in rows)
    for number, (partitions, capacities) in enumerate(kinds):
        chosen = [r for r in rows if (r.layout.partitions, r.layout.capacities) == (partitions, capacities)]
        chart.line(
            [row.layout.nodes for row in chosen],
            [row.objects_max_over_mean for row in chosen],
            COLOURS[number % len(COLOURS)],
            label=f"{partitions:,} partitions, {capacities.value} nodes",
            style=":" if capacities is Capacities.MIXED else "-",
        )
    chart.axes.set_ylim(bottom=1.0)
    chart.legend()
    return Markup(chart.svg())


def _by_nodes(title: str, y_name: str, nodes: set[int]) -> Chart:
    from coffre.bench.charts import Chart  # Matplotlib takes a while to load

    chart = Chart(title, "nodes", y_name)
    chart.axes.set_xscale("log")
    chart.ticks("x", sorted(nodes), lambda value: f"{value:,.0f}")
    return chart


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
