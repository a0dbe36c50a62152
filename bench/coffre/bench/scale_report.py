"""A scale run for people: one HTML page that needs nothing else, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from coffre.bench.line_chart import Point, Series, line_chart
from coffre.bench.scale import Durability, ScaleResult, assumptions
from coffre.bench.scale_placement import Balance, Capacities, Movement
from coffre.cluster.version import __version__
from rich.console import Console
from rich.table import Table

__all__ = ["html_report", "print_result"]

_STYLE = """
:root{--ink:#1c2530;--soft:#5a6776;--rule:#dfe4ea;--paper:#fff;--panel:#f6f8fa;
 --c0:#0b6aa8;--c1:#c2512f;--c2:#4f7f2a;--c3:#7a56a8}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#9aa7b5;--rule:#2e3842;--paper:#12181f;--panel:#1a222b;
 --c0:#5bb0e6;--c1:#ee8b6c;--c2:#93c46a;--c3:#b99be0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
 font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue", sans-serif}
main{max-width:1040px;margin:0 auto;padding:36px 28px 56px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:18px;margin:40px 0 4px}
p{margin:4px 0 12px;max-width:76ch}
.sub{color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(215px,1fr));gap:12px;margin:22px 0 8px}
.fact{background:var(--panel);border:1px solid var(--rule);border-radius:8px;padding:12px 16px}
.fact b{display:block;font-size:22px;font-weight:600;font-variant-numeric:tabular-nums}
.fact span{color:var(--soft);font-size:13px;line-height:1.35;display:block}
figure{margin:12px 0 6px;border:1px solid var(--rule);border-radius:8px;padding:14px 16px 6px}
figure>svg{display:block;width:100%;height:auto}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:13px;margin:0 0 4px 48px}
.legend svg{width:28px;height:10px;margin-right:7px;vertical-align:middle}
.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}
.tick{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}.label{font-size:12.5px;fill:var(--ink)}
.line{fill:none;stroke-width:2}.dashed{stroke-dasharray:5 4}.whisker{stroke-width:1.5;opacity:.55}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}
.dot.c0{fill:var(--c0)}.dot.c1{fill:var(--c1)}.dot.c2{fill:var(--c2)}.dot.c3{fill:var(--c3)}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th{font-weight:600;text-align:right;border-bottom:1.5px solid var(--soft);padding:5px 10px;vertical-align:bottom}
td{text-align:right;border-bottom:1px solid var(--rule);padding:4px 10px;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:2px}
ul{padding-left:20px;max-width:82ch}li{margin:5px 0}
footer{margin-top:36px;padding-top:12px;border-top:1px solid var(--rule);color:var(--soft);
 font-size:13px;overflow-wrap:anywhere}
"""

_INTRODUCTION = (
    "Placement is the product's own code on synthetic maps. Durability is a model: it says how schemes and sizes "
    "compare under its assumptions, which stand at the end, and promises nothing."
)
_OF_DURABILITY = (
    "Solid: nodes fail and whole sites are lost. Dashed: nodes alone fail. Whiskers are two standard errors."
)
_OF_MARKOV = (
    "Markov: the chain of one group of k + m nodes that fail independently, times the number of groups. It is an upper "
    "bound for any loss and the exact expectation of objects lost; without site losses the simulation has to meet it."
)
_OF_BALANCE = (
    "Relative to its capacity and to the mean of the cluster. At 1.25, a quarter more than the mean, the cluster is "
    "full when 80 % of its capacity is used."
)
_OF_MOVEMENT = (
    "Fractions of all shards. What had to move is what the newcomer holds afterwards, or what the leaver held. The "
    "last column is what would move if shard i had to lie on the i-th primary; manifests record places, so it need not."
)
_BALANCE_HEAD = (
    "nodes", "partitions", "capacities", "shards per node, least", "most", "fullest / mean", "emptiest / mean",
    "fullest / mean, with objects", "usable", "spread by objects",
)  # fmt: skip
_MOVEMENT_HEAD = ("nodes", "change", "moved", "had to move", "ratio", "fair share", "if rank were index")
_DURABILITY_HEAD = (
    "nodes", "policy", "site losses", "repair of a node", "loss of any, 1 year", "± 1 s.e.",
    "objects lost, 1 year", "± 1 s.e.", "Markov: loss at most", "Markov: objects", "exact",
)  # fmt: skip


def html_report(result: ScaleResult) -> str:
    """The page, complete."""
    options = result.options
    policy = options.policies[0].name
    content = result.content()
    size = f"{min(options.nodes):,} to {max(options.nodes):,} nodes, {options.objects:,} objects"
    sections = [
        f"<h1>Coffre on paper: {size}</h1>",
        f'<p class="sub">{_INTRODUCTION}</p>',
        _facts(result),
        "<h2>Probability of losing any object within a year</h2>",
        f"<p>{_OF_DURABILITY}</p>",
        f"<figure>{_durability_chart(result.durabilities)}</figure>",
        _html_table(*_durability_table(result.durabilities)),
        f'<p class="sub">{_OF_MARKOV}</p>',
        f"<h2>Balance: how full the fullest node is ({policy})</h2>",
        f"<p>{_OF_BALANCE}</p>",
        f"<figure>{_balance_chart(result.balances)}</figure>",
        _html_table(_BALANCE_HEAD, map(_balance_cells, result.balances)),
        f"<h2>Movement when one node joins or leaves ({policy})</h2>",
        f"<p>{_OF_MOVEMENT}</p>",
        _html_table(_MOVEMENT_HEAD, map(_movement_cells, result.movements)),
        "<h2>Assumptions</h2>",
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in assumptions(options)) + "</ul>",
        f"<footer>coffre {__version__}, seed {options.seed}; SHA-256 of the rows {content['digest']}</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Coffre on paper</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main>\n" + "\n".join(sections) + "\n</main></body></html>\n"
    )


def print_result(result: ScaleResult, console: Console) -> None:
    """Three tables, then the assumptions and the digest."""
    _print_table("durability", *_durability_table(result.durabilities), console)
    _print_table("balance", _BALANCE_HEAD, map(_balance_cells, result.balances), console)
    _print_table("movement, of all shards", _MOVEMENT_HEAD, map(_movement_cells, result.movements), console)
    console.print("Assumptions", style="bold")
    for line in assumptions(result.options):
        console.print(f"- {line}", highlight=False)
    console.print(
        f"coffre {__version__}, seed {result.options.seed}; SHA-256 of the rows {result.content()['digest']}",
        soft_wrap=True,
        highlight=False,
    )


def _facts(result: ScaleResult) -> str:
    largest = max(result.options.nodes)
    worst = max(result.durabilities, key=lambda one: one.loss_probability)
    fullest = next(one for one in result.balances if one.layout.nodes == largest)
    even = max((one for one in result.balances if one.layout.nodes == largest), key=lambda one: one.usable)
    excess = max(one.moved / one.minimum for one in result.movements if one.minimum)
    facts = (
        (
            f"{worst.loss_probability:.1e}",
            f"highest probability of a loss in a year: {worst.nodes:,} nodes, {worst.policy}",
        ),
        (
            f"{fullest.usable:.0%}",
            f"usable at {largest:,} nodes with {fullest.layout.partitions:,} partitions",
        ),
        (
            f"{even.usable:.0%}",
            f"usable at {largest:,} nodes at best: {even.layout.partitions:,} partitions, "
            f"{even.layout.capacities.value} nodes",
        ),
        (f"{excess:.3f} x", "moved, of what has to move, when one node joins or leaves, at most"),
    )
    boxes = (
        f'<div class="fact"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in facts
    )
    return f'<div class="facts">{"".join(boxes)}</div>'


def _durability_chart(rows: Sequence[Durability]) -> str:
    policies = list(dict.fromkeys(row.policy for row in rows))
    series = []
    for colour, policy in enumerate(policies):
        for sites in (True, False):
            chosen = [r for r in rows if r.policy == policy and bool(r.site_losses_per_year) == sites]
            points = tuple(_durability_point(row) for row in chosen if row.loss_probability > 0)
            if points:
                label = f"{policy}, " + ("nodes and sites" if sites else "nodes alone")
                series.append(Series(label, colour % 4, not sites, points))
    if not series:
        return "<p>No loss was found in any case.</p>"
    title = "Annual probability of losing any object, by number of nodes"
    return line_chart(series, "nodes", "probability", log_y=True, title=title)


def _durability_point(row: Durability) -> Point:
    value, error = row.loss_probability, 2 * row.estimate.losses_error
    return Point(row.nodes, value, value * max(0.1, 1 - error), min(1.0, value * (1 + error)))


def _balance_chart(rows: Sequence[Balance]) -> str:
    kinds = dict.fromkeys((row.layout.partitions, row.layout.capacities) for row in rows)
    series = []
    for colour, (partitions, capacities) in enumerate(kinds):
        chosen = [r for r in rows if (r.layout.partitions, r.layout.capacities) == (partitions, capacities)]
        values = [(r.layout.nodes, r.objects_max_over_mean) for r in chosen]
        label = f"{partitions:,} partitions, {capacities.value} nodes"
        points = tuple(Point(x, y, y, y) for x, y in values)
        series.append(Series(label, colour % 4, capacities is Capacities.MIXED, points))
    title = "Fullest node over the mean, by number of nodes"
    return line_chart(series, "nodes", "fullest / mean", log_y=False, title=title)


def _balance_cells(row: Balance) -> tuple[str, ...]:
    return (
        f"{row.layout.nodes:,}",
        f"{row.layout.partitions:,}",
        row.layout.capacities.value,
        f"{row.shards_min:,}",
        f"{row.shards_max:,}",
        f"{row.partitions_max_over_mean:.3f}",
        f"{row.partitions_min_over_mean:.3f}",
        f"{row.objects_max_over_mean:.3f}",
        f"{row.usable:.1%}",
        f"{row.object_spread:.1e}",
    )


def _movement_cells(row: Movement) -> tuple[str, ...]:
    return (
        f"{row.layout.nodes:,}",
        row.change,
        f"{row.moved:.4%}",
        f"{row.minimum:.4%}",
        f"{row.moved / row.minimum:.3f}" if row.minimum else "",
        f"{row.fair:.4%}",
        f"{row.by_rank:.3%}",
    )


def _durability_table(rows: Sequence[Durability]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Heading and cells; the column of exact solutions only where there is one."""
    width = len(_DURABILITY_HEAD) - all(row.exact_loss_probability is None for row in rows)
    return _DURABILITY_HEAD[:width], [_durability_cells(row)[:width] for row in rows]


def _durability_cells(row: Durability) -> tuple[str, ...]:
    found = row.estimate
    return (
        f"{row.nodes:,}",
        row.policy,
        f"{row.site_losses_per_year:g}" if row.site_losses_per_year else "none",
        f"{row.repair_seconds / 3600:.1f} h",
        f"{row.loss_probability:.2e}" if found.loss_cycles else "none found",
        f"{found.losses_error:.0%}" if found.loss_cycles else "",
        f"{row.objects_lost_per_year:.2e}" if found.loss_cycles else "none found",
        f"{found.groups_error:.0%}" if found.loss_cycles else "",
        f"{row.independent_loss_probability:.2e}",
        f"{row.independent_objects_lost_per_year:.2e}",
        "" if row.exact_loss_probability is None else f"{row.exact_loss_probability:.2e}",
    )


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], console: Console) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in head:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()
