"""A scale run for people: one HTML page that needs nothing else, its charts, and tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from coffre.bench.pages import COLOURS, Markup, render
from coffre.bench.scale import Durability, ScaleResult, assumptions
from coffre.bench.scale_placement import Balance, Capacities, Movement
from coffre.bench.tables import Table
from coffre.cluster.version import __version__
from rich.console import Console

if TYPE_CHECKING:
    from coffre.bench.charts import Chart

__all__ = ["balance_chart", "durability_chart", "html_report", "print_result"]


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
