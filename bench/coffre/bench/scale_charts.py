"""The charts of a scale run: losses and balance, by the number of nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from coffre.bench.charts import COLOURS, Chart
from coffre.bench.pages import Markup
from coffre.bench.scale import Durability
from coffre.bench.scale_placement import Balance, Capacities

__all__ = ["balance_chart", "durability_chart"]

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
    chart = Chart(title, "nodes", y_name)
    chart.axes.set_xscale("log")
    chart.ticks("x", sorted(nodes), lambda value: f"{value:,.0f}")
    return chart
