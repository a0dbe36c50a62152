"""Run the micro benchmarks and compare them with the committed baseline, or make a new one."""

from __future__ import annotations

import sys
from collections.abc import Collection, Generator
from contextlib import closing
from pathlib import Path

import bench_codec
import bench_index
import bench_messages
import bench_pipeline
import bench_placement
import click
from coffre.bench.invocation import directory_option, output_console
from coffre.bench.micro import (
    Baseline,
    Change,
    Micro,
    MicroRow,
    Verdict,
    Wanted,
    compare,
    measured,
    print_changes,
    quieter,
)
from coffre.bench.result import machine
from coffre.cluster.admin import one_line_errors
from coffre.cluster.version import __version__
from rich.console import Console

HERE = Path(__file__).parent
SECOND_LOOKS = 2  # what seems slower is measured again: noise passes, a change stays
BASELINE = HERE.parent / "results" / "micro.json"


@click.command()
@click.option("--save", is_flag=True, help="Make what is measured the baseline, instead of comparing.")
@click.option("--strict", is_flag=True, help="Exit with 1 when an operation got slower.")
@click.option(
    "--large", is_flag=True, help="The index with ten million keys, too: minutes, and gigabytes of disk."
)
@click.option(
    "--only", metavar="WORDS", help='Benchmarks with one of these in their names: "crc32c or batch".'
)
@directory_option("Where the index lives meanwhile")
@click.option("--baseline", "path", type=click.Path(path_type=Path, dir_okay=False), default=BASELINE)
@one_line_errors
def main(save: bool, strict: bool, large: bool, only: str | None, directory: Path, path: Path) -> None:
    """Time operations beside references; say which got slower than the baseline by more than their tolerance."""
    if save and only:
        raise click.UsageError("a baseline is of all benchmarks: --save goes without --only")
    known = Baseline("", "", ()) if save else Baseline.read(path)
    console = output_console()
    words = only.split(" or ") if only else [""]
    rows = measure(lambda name: any(word.strip() in name for word in words), directory, large, console)
    cpu = machine(HERE).cpu
    if save:
        Baseline(cpu, __version__, tuple(rows)).write(path)
        console.print(f"{len(rows)} ratios written to {path.name}")
        return
    if known.cpu != cpu:
        console.print(
            f"[yellow]the baseline is of another processor: {known.cpu}; this is {cpu}", soft_wrap=True
        )
    names = {row.id for row in rows}
    before = [row for row in known.rows if not only or row.id in names]
    suspects = slower(compare(before, rows))
    for _ in range(SECOND_LOOKS):
        if suspects:
            rows = quieter(rows, measure(suspects.__contains__, directory, large, console))
            suspects = slower(compare(before, rows))
    print_changes(compare(before, rows), console)
    sys.exit(1 if strict and suspects else 0)


def benchmarks(wanted: Wanted, place: Path, large: bool) -> Generator[Micro]:
    """Those that are wanted. What one needs is there until the next one is asked for."""
    for plain in (bench_codec, bench_pipeline, bench_messages, bench_placement):
        yield from filter(lambda micro: wanted(micro.id), plain.benchmarks())
    with closing(bench_index.benchmarks(wanted, place, large)) as of_index:
        yield from of_index


def measure(wanted: Wanted, place: Path, large: bool, console: Console) -> list[MicroRow]:
    """One row after the other."""
    rows = []
    with console.status("") as status, closing(benchmarks(wanted, place.resolve(), large)) as found:
        for micro in found:
            status.update(micro.id)
            rows.append(measured(micro))
    return rows


def slower(changes: Collection[Change]) -> set[str]:
    """Ids of what got slower."""
    return {change.id for change in changes if change.verdict is Verdict.SLOWER}


if __name__ == "__main__":
    main()
