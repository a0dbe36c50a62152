"""A result as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from coffre.bench.files import write_whole
from coffre.bench.load.charts import (
    Buckets,
    distribution_chart,
    errors_chart,
    latency_chart,
    throughput_chart,
)
from coffre.bench.load.damage import DATA_ERRORS
from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.result import ALL, LoadResult
from coffre.bench.load.tables import operations_table, phases_table
from coffre.bench.load.wording import amount, duration, remarks
from coffre.bench.load.workload import Operation
from coffre.bench.pages import Markup, render

__all__ = ["render_report", "write_report"]

_Chart = tuple[str, str, Markup, list[str]]  # title, explanation, picture, names of the lines


def write_report(path: Path, result: LoadResult) -> None:
    """Write the page, all or nothing. Raises `ConfigurationError`."""
    write_whole(path, render_report(result))


def render_report(result: LoadResult) -> str:
    """The page as text."""
    time = result.time.isoformat(sep=" ", timespec="seconds")
    return render(
        "load.html",
        {"amount": amount, "duration": duration},
        title="Coffre failure report" if result.events else "Coffre load report",
        asked=_asked(result.plan),
        footer=f"coffre {result.version}, seed {result.plan.seed}, {time}",
        result=result,
        plan=result.plan,
        sums=[row for row in result.rows() if row.kind == ALL],
        errors=result.errors(),
        data_errors=DATA_ERRORS,
        charts=_charts(result),
        operations=operations_table(result),
        phases=phases_table(result),
        circumstances=_circumstances(result),
        remarks=remarks(result),
    )


def _asked(plan: LoadPlan) -> str:
    if plan.workload == "fixed":
        what = f"objects of {plan.size_bytes:,} bytes"
    else:
        what = "health records" + ("" if plan.workload == "health" else " without archives")
    if plan.rate_per_s is None:
        return f"{plan.in_flight} callers in a closed loop, {what}"
    return f"{plan.rate_per_s:g} operations/s in an open loop, {what}"


def _charts(result: LoadResult) -> list[_Chart]:
    buckets = Buckets.of(result)
    operations = [each.value for each in buckets.operations]
    frequent = [each.value for each in buckets.frequent()]
    width = f"{buckets.width_s:g} s"
    since = "from when each was due" if result.plan.rate_per_s is not None else "from the call"
    found: list[_Chart] = [
        (
            "Throughput over time",
            f"Operations that ended, per second, in steps of {width}.",
            Markup(throughput_chart(result, buckets)),
            operations,
        ),
        (
            "Errors over time",
            f"Operations that failed, per second, in steps of {width}.",
            Markup(errors_chart(result, buckets)),
            [],
        ),
        (
            "Latency over time",
            f"p99 (line) and p50 (dotted) of each {width}, {since}; of fewer than 100 operations, p99 is the slowest.",
            Markup(latency_chart(result, buckets)),
            frequent,
        ),
        (
            "Distribution of latencies",
            "The share of operations that took at most so long. Each step up the axis is one more nine.",
            Markup(distribution_chart(result)),
            operations,
        ),
    ]
    if not any(tally.failed for tally in buckets.tallies.values()):
        del found[1]
    return found


def _circumstances(result: LoadResult) -> list[tuple[str, str]]:
    plan, cluster, host, usage = result.plan, result.cluster, result.machine, result.usage
    loop = (
        f"closed, {plan.in_flight} callers"
        if plan.rate_per_s is None
        else f"open, {plan.rate_per_s:g}/s (Poisson), at most {plan.in_flight} in flight"
    )
    found = [
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
        ("CPU of the clients", f"{sum(usage.client_cpu_s):.1f} s"),
        ("Machine of the clients", str(host)),
    ]
    # What the nodes say, if they could be asked.
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
