"""How quantities read, and what is to be said next to them."""

from __future__ import annotations

from coffre.bench.load.result import LoadResult

__all__ = ["amount", "count", "duration", "remarks", "times"]

SATURATED = 0.9


def amount(value: float, unit: str) -> str:
    """Three digits with a decimal SI prefix: 12.3 MB/s."""
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while abs(value) >= 999.5 and prefix != "P":
        value, prefix = value / 1000, next(prefixes)
    digits = 0 if prefix == "" and value == int(value) else max(0, 3 - len(str(int(abs(value)))))
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def count(value: int) -> str:
    """With separators: 12,345. Nothing for 0."""
    return f"{value:,}" if value else ""


def duration(seconds: float | None) -> str:
    """Three digits: 850 µs, 1.23 ms, 12.3 s. Nothing for None."""
    if seconds is None:
        return ""
    value, unit = seconds, "s"
    if seconds < 0.9995:
        value, unit = seconds * 1e3, "ms"
    if seconds < 0.0009995:
        value, unit = seconds * 1e6, "µs"
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def times(ratio: float | None) -> str:
    """A ratio to the first phase: x 1.25. Nothing for None."""
    return "" if ratio is None else f"x {ratio:.2f}"


def remarks(result: LoadResult) -> list[str]:
    """What the figures depend on, and what makes them doubtful."""
    usage, cores = result.usage, result.machine.cores
    said = []
    shares = [each / usage.elapsed_s for each in usage.client_cpu_s]
    said.append(f"client processes: {', '.join(f'{share:.0%}' for share in shares)} of a core each")
    if max(shares) > SATURATED:
        said.append(
            "a client process was busy nearly all the time: it may be what limited the rate; use more"
        )
    cluster_s = usage.spent("cpu_s")
    if cluster_s is not None:
        whole = (cluster_s + sum(usage.client_cpu_s)) / usage.elapsed_s / cores
        said.append(
            f"nodes: {cluster_s / usage.elapsed_s:.2f} cores; with the clients {whole:.0%} of this machine"
        )
    if result.not_started:
        said.append(
            f"{result.not_started:,} operations were due and never begun: the cluster did not keep up, and no "
            "percentile knows of them"
        )
    if result.lag is not None:
        half, high = result.lag.percentiles([50, 99])
        said.append(f"begun after they were due: p50 {duration(half)}, p99 {duration(high)}")
    return said
