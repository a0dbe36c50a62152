"""A result as one HTML page that needs nothing else: no script, no font, no picture, no address."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from coffre.bench.load.charts import (
    Buckets,
    distribution_chart,
    errors_chart,
    latency_chart,
    throughput_chart,
)
from coffre.bench.load.damage import DATA_ERRORS
from coffre.bench.load.phases import phase_rows
from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.report_style import CSS
from coffre.bench.load.result import ALL, PERCENTILES, LoadResult, Row
from coffre.bench.load.wording import amount, duration, remarks, times
from coffre.bench.load.workload import Operation

__all__ = ["render_report", "write_report"]

_Cell = tuple[str, str]  # text and class


def write_report(path: Path, result: LoadResult) -> None:
    """Write the page, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8") as sink:
        sink.write(render_report(result))
        sink.flush()
        os.fsync(sink.fileno())
    draft.replace(path)


def render_report(result: LoadResult) -> str:
    """The page as text."""
    title = "Coffre failure report" if result.events else "Coffre load report"
    sections = [
        _header(result, title),
        _tiles(result),
        *_damage(result),
        *_charts(result),
        *_phases(result),
        _operations(result),
        *_errors(result),
        _circumstances(result),
        _remarks(result),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>\n"
        + "\n".join(sections)
        + f"\n<footer>coffre {escape(result.version)}, seed {result.plan.seed}, "
        f"{escape(result.time.isoformat(sep=' ', timespec='seconds'))}</footer></main></body></html>\n"
    )


# ---------------------------------------------------------------- the top


def _header(result: LoadResult, title: str) -> str:
    if result.data_errors:
        verdict = f'<div class="verdict bad">{result.data_errors:,} times data was wrong or lost</div>'
    else:
        verdict = '<div class="verdict good">Every byte read was as it must be</div>'
    return (
        f'<header><div><div class="brand">{escape(title)}</div><h1>{escape(_asked(result.plan))}</h1>'
        f'<p class="sub">{escape(str(result.plan.parsed_mix()))}</p></div>{verdict}</header>'
    )


def _asked(plan: LoadPlan) -> str:
    if plan.workload == "fixed":
        what = f"objects of {plan.size_bytes:,} bytes"
    else:
        what = "health records" + ("" if plan.workload == "health" else " without archives")
    if plan.rate_per_s is None:
        return f"{plan.in_flight} callers in a closed loop, {what}"
    return f"{plan.rate_per_s:g} operations/s in an open loop, {what}"


def _tiles(result: LoadResult) -> str:
    rows = [row for row in result.rows() if row.kind == ALL]
    tiles = [
        (
            "Operations",
            f"{sum(row.per_s for row in rows):,.0f}/s",
            f"{sum(row.done for row in rows):,} in all",
        ),
        ("Payload", amount(sum(row.bytes_per_s for row in rows), "B/s"), "in and out, before coding"),
    ]
    for row in sorted(rows, key=lambda row: -row.done)[:2]:
        high = row.percentiles_s.get(99.0)
        half = row.percentiles_s.get(50.0)
        tiles.append(
            (f"{row.operation.value} p99", duration(high) or "too few", f"p50 {duration(half) or 'too few'}")
        )
    failed = sum(result.errors().values())
    tiles.append(("Errors", f"{failed:,}", "of any kind, the ramp included"))
    if result.check is not None:
        tiles.append(("Read back", f"{result.check.checked:,}", "objects written, all compared"))
    shown = "".join(_tile(*tile, "") for tile in tiles)
    if result.not_started:
        note = "were due; no percentile knows of them"
        shown += _tile("Never begun", f"{result.not_started:,}", note, "bad")
    return f'<div class="tiles">{shown}</div>'


def _tile(name: str, value: str, note: str, style: str) -> str:
    return (
        f'<div class="tile {style}"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
    )


def _damage(result: LoadResult) -> list[str]:
    if not result.data_errors:
        return []
    lines = "\n".join(escape(line) for line in result.examples)
    return [f'<section class="alarm"><h2>Wrong or lost data</h2><pre>{lines}</pre></section>']


# ---------------------------------------------------------------- charts


def _charts(result: LoadResult) -> list[str]:
    buckets = Buckets.of(result)
    operations = [each.value for each in buckets.operations]
    width = f"{buckets.width_s:g} s"
    found = [
        _figure(
            "Throughput over time",
            f"Operations that ended, per second, in steps of {width}.",
            throughput_chart(result, buckets),
            operations,
        )
    ]
    if any(tally.failed for tally in buckets.tallies.values()):
        found.append(
            _figure(
                "Errors over time",
                f"Operations that failed, per second, in steps of {width}.",
                errors_chart(result, buckets),
                ["failed"],
            )
        )
    since = "from when each was due" if result.plan.rate_per_s is not None else "from the call"
    found.append(
        _figure(
            "Latency over time",
            f"p99 (line) and p50 (dotted) of each {width}, {since}; of fewer than 100 operations, p99 is the slowest.",
            latency_chart(result, buckets),
            [each.value for each in buckets.frequent()],
        )
    )
    found.append(
        _figure(
            "Distribution of latencies",
            "The share of operations that took at most so long. Each step up the axis is one more nine.",
            distribution_chart(result),
            operations,
        )
    )
    return found


def _figure(title: str, explained: str, svg: str, names: Iterable[str]) -> str:
    legend = "".join(f'<li><i class="{name}"></i>{name}</li>' for name in names)
    return (
        f'<section><h2>{escape(title)}</h2><p class="sub">{escape(explained)}</p>{svg}'
        f'<ul class="legend">{legend}</ul></section>'
    )


# ---------------------------------------------------------------- tables


def _table(heads: Sequence[_Cell], rows: Iterable[tuple[str, Sequence[_Cell]]]) -> str:
    """`rows` are a class and cells each."""
    head = "".join(f'<th class="{style}">{escape(text)}</th>' for text, style in heads)
    body = "".join(
        f'<tr class="{row_style}">'
        + "".join(f'<td class="{style}">{escape(text)}</td>' for text, style in cells)
        + "</tr>"
        for row_style, cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _operations(result: LoadResult) -> str:
    heads = [
        *(
            ("operation", "text"),
            ("class", "text"),
            ("done", ""),
            ("errors", ""),
            ("op/s", ""),
            ("bytes/s", ""),
        ),
        *(("mean", ""), *((f"p{each:g}", "") for each in PERCENTILES), ("max", "")),
    ]
    rows = [("sum" if row.kind == ALL else "part", _operation_cells(row)) for row in result.rows()]
    return (
        '<section><h2>By operation and class</h2><p class="sub">The measured part: after the ramp. A percentile '
        "is given when at least one operation lies beyond it.</p>" + _table(heads, rows) + "</section>"
    )


def _operation_cells(row: Row) -> list[_Cell]:
    return [
        (row.operation.value if row.kind == ALL else "", "text"),
        (row.kind, "text"),
        (f"{row.done:,}", ""),
        _errors_cell(row.failed),
        (f"{row.per_s:,.1f}", ""),
        (amount(row.bytes_per_s, "B/s"), "") if row.bytes_per_s else ("–", "none"),
        _time_cell(row.mean_s),
        *(_time_cell(row.percentiles_s.get(each)) for each in PERCENTILES),
        _time_cell(row.max_s),
    ]


def _errors_cell(count: int) -> _Cell:
    return (f"{count:,}", "bad") if count else ("–", "none")


def _time_cell(seconds: float | None) -> _Cell:
    return ("–", "none") if seconds is None else (duration(seconds), "")


def _phases(result: LoadResult) -> list[str]:
    if not result.events:
        return []
    events = {event.phase: event for event in result.events}
    heads = [
        *(("phase", "text"), ("from", ""), ("what was done", "text"), ("operation", "text"), ("done", "")),
        *(("errors", ""), ("op/s", ""), ("", "")),
        *(("p50", ""), ("p99", ""), ("", ""), ("max", "")),
    ]
    rows, shown = [], None
    for row in phase_rows(result):
        event, first, shown = events[row.phase], row.phase != shown, row.phase
        told = (event.phase, f"{event.at_s:.1f} s", event.what) if first else ("", "", "")
        rows.append(
            (
                "",
                [
                    *(
                        (told[0], "text"),
                        (told[1], ""),
                        (told[2], "text what"),
                        (row.operation.value, "text"),
                    ),
                    *((f"{row.done:,}", ""), _errors_cell(row.failed)),
                    *((f"{row.per_s:,.1f}", ""), (times(row.per_s_ratio), "soft")),
                    *(_time_cell(row.percentiles_s.get(each)) for each in (50.0, 99.0)),
                    *((times(row.p99_ratio), "soft"), _time_cell(row.max_s)),
                ],
            )
        )
    return [
        '<section><h2>Phase by phase</h2><p class="sub">An operation belongs to the phase that it ended in. '
        + "Factors are to the first phase.</p>"
        + _table(heads, rows)
        + "</section>"
    ]


def _errors(result: LoadResult) -> list[str]:
    found = result.errors()
    if not found:
        return []
    rows = [
        ("", [(name, "text"), (f"{count:,}", "bad" if name in DATA_ERRORS else "")])
        for name, count in sorted(found.items(), key=lambda each: -each[1])
    ]
    return [
        '<section><h2>Errors by class</h2><p class="sub">Of the whole run: ramp, load and read-back.</p>'
        + _table([("class", "text"), ("count", "")], rows)
        + "</section>"
    ]


# ---------------------------------------------------------------- circumstances


def _circumstances(result: LoadResult) -> str:
    plan, cluster, host = result.plan, result.cluster, result.machine
    loop = (
        f"closed, {plan.in_flight} callers"
        if plan.rate_per_s is None
        else f"open, {plan.rate_per_s:g}/s (Poisson), at most {plan.in_flight} in flight"
    )
    facts = [
        ("Loop", loop),
        ("Client processes", f"{plan.processes}"),
        ("Measured", f"{result.seconds:g} s after {plan.ramp_intervals * plan.interval_s:g} s of ramp"),
        ("Objects to read", f"{plan.objects:,}"),
        ("Ranges of", amount(plan.range_bytes, "B")),
        (
            "Cluster",
            f"{cluster.nodes} nodes, {cluster.sites} sites, {cluster.operators} operators, policy {cluster.policy} "
            f"({cluster.k}+{cluster.m}), map epoch {cluster.epoch}",
        ),
        ("CPU of the clients", f"{sum(result.usage.client_cpu_s):.1f} s"),
        *_costs(result),
        (
            "Machine of the clients",
            f"{host.cpu}, {host.cores} cores, {host.memory_bytes / 1e9:.0f} GB, kernel {host.kernel}, "
            f"Python {host.python}, {host.filesystem}",
        ),
    ]
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f"<section><h2>Circumstances</h2><dl>{items}</dl></section>"


def _costs(result: LoadResult) -> list[tuple[str, str]]:
    """What the nodes say, if they could be asked."""
    usage, found = result.usage, []
    if (used_s := usage.spent("cpu_s")) is not None:
        found.append(("CPU of the nodes", f"{used_s:.1f} s"))
    if (syncs := usage.spent("syncs")) is not None:
        puts = result.timeline.tally(lambda each: each.operation is Operation.PUT).done
        each_put = f", {syncs / puts:.1f} per put" if puts else ""
        found.append(("Syncs of the nodes", f"{syncs:,.0f}{each_put}"))
    before, after = usage.before.disk_bytes, usage.after.disk_bytes
    if before is not None and after is not None:
        found.append(("On the nodes' disks", f"{amount(before, 'B')} before, {amount(after, 'B')} after"))
    return found


def _remarks(result: LoadResult) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in remarks(result))
    return f'<section><h2>Before you believe it</h2><ul class="notes">{items}</ul></section>'
