"""Micro benchmarks as ratios: measured beside a reference, kept as a baseline, compared with it.

A row is the time of an operation over the time of a reference operation, which takes turns with it. The reference
is none of Coffre's code. Neighbours on a machine only ever add time, so of both the quiet rounds count: the lowest
decile. Absolute times on a shared machine differ by factors from one minute to the next; these ratios differ by what
`Noise` allows.
"""

from __future__ import annotations

import enum
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coffre.bench.files import write_whole
from coffre.bench.tables import Table
from coffre.bench.typed_json import decoded, plain
from coffre.cluster.errors import ConfigurationError, InvalidArgument
from rich.console import Console

__all__ = [
    "INTERPRETER",
    "Baseline",
    "Change",
    "Micro",
    "MicroRow",
    "Noise",
    "Reference",
    "Verdict",
    "Wanted",
    "compare",
    "measured",
    "print_changes",
    "quieter",
    "row_from_rounds",
]

ROUNDS = 61  # of a millisecond or so: short enough that some of them are left alone on a busy machine
_FORMAT = 1


class Noise(enum.Enum):
    """How far the ratio of unchanged code strays from one run to the next; bench/README.md says how it was found."""

    CPU = "cpu"
    DISK = "disk"

    @property
    def tolerance(self) -> float:
        """A ratio that grew by more than this part counts as slower."""
        return {Noise.CPU: 0.3, Noise.DISK: 0.6}[self]


@dataclass(frozen=True, slots=True)
class Reference:
    """Work that is none of Coffre's, of a fixed size: a millisecond or a few."""

    id: str
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Micro:
    """One operation, and what takes turns with it."""

    id: str
    reference: Reference
    run: Callable[[], object]
    noise: Noise = Noise.CPU
    rounds: int = ROUNDS


Wanted = Callable[[str], bool]
"""Whether a benchmark is asked for, by its id."""


@dataclass(frozen=True, slots=True)
class MicroRow:
    """One operation. `ratio` is its time over that of the reference: lower is faster.

    `spread` is how much longer the median round took than the quiet ones: how disturbed the measurement was.
    `seconds` is the operation's time in the quiet rounds.
    """

    id: str
    reference_id: str
    noise: Noise
    ratio: float
    spread: float
    seconds: float

    def __post_init__(self) -> None:
        if not (0 < self.ratio < math.inf and 0 <= self.spread < math.inf and 0 < self.seconds < math.inf):
            raise ValueError(f"row {self.id} has figures that cannot be")


def measured(micro: Micro) -> MicroRow:
    """Time the operation right after its reference, round by round."""
    micro.reference.run()
    micro.run()
    references: list[float] = []
    durations: list[float] = []
    gc.disable()
    try:
        for _ in range(micro.rounds):
            for run, found in ((micro.reference.run, references), (micro.run, durations)):
                start = time.perf_counter()
                run()
                found.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return row_from_rounds(micro.id, micro.reference.id, micro.noise, durations, references)


def row_from_rounds(
    row_id: str, reference_id: str, noise: Noise, durations: Sequence[float], references: Sequence[float]
) -> MicroRow:
    """The row of rounds that were timed in turns, seconds each: at least two.

    Four significant digits are more than the measurement has.
    """
    quiet, reference = (statistics.quantiles(x, n=10, method="inclusive")[0] for x in (durations, references))
    spread = statistics.median(durations) / quiet - 1
    ratio, spread, seconds = (float(f"{value:.4g}") for value in (quiet / reference, spread, quiet))
    return MicroRow(row_id, reference_id, noise, ratio, spread, seconds)


@dataclass(frozen=True, slots=True)
class Baseline:
    """Ratios to compare with, and the processor that they are from: SIMD tiers differ between processors."""

    cpu: str
    version: str
    rows: tuple[MicroRow, ...]
    format: int = _FORMAT

    def write(self, path: Path) -> None:
        """As JSON. Raises `ConfigurationError`."""
        write_whole(path, json.dumps(plain(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Raises `ConfigurationError` for a file that is not there, or is none that `write` wrote."""
        try:
            found = decoded(cls, json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, InvalidArgument) as error:
            raise ConfigurationError(f"{path} is not a baseline: {error}") from None
        if found.format != _FORMAT:
            raise ConfigurationError(f"{path} has format {found.format}, not {_FORMAT}")
        return found


class Verdict(enum.Enum):
    """What became of an operation since the baseline."""

    SAME = ""
    SLOWER = "SLOWER"
    FASTER = "faster"
    NEW = "new"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Change:
    """One operation, then and now. `growth` is how much the ratio grew: 0.1 is a tenth slower."""

    id: str
    before: MicroRow | None
    now: MicroRow | None
    growth: float | None
    verdict: Verdict


def compare(baseline: Sequence[MicroRow], rows: Sequence[MicroRow]) -> list[Change]:
    """Each row of either; in the order of `rows`, then what was not run. Another reference makes a row new."""
    before = {(row.id, row.reference_id): row for row in baseline}
    found = [_change(before.pop((row.id, row.reference_id), None), row) for row in rows]
    return found + [Change(row.id, row, None, None, Verdict.NOT_RUN) for row in before.values()]


def quieter(rows: Sequence[MicroRow], again: Sequence[MicroRow]) -> list[MicroRow]:
    """`rows`, with the lower ratio for those that were measured again."""
    found = {row.id: row for row in again}
    return [min(row, found.get(row.id, row), key=lambda one: one.ratio) for row in rows]


def _change(before: MicroRow | None, now: MicroRow) -> Change:
    if before is None:
        return Change(now.id, None, now, None, Verdict.NEW)
    factor = now.ratio / before.ratio
    limit = 1 + now.noise.tolerance
    verdict = Verdict.SLOWER if factor > limit else Verdict.FASTER if factor < 1 / limit else Verdict.SAME
    return Change(now.id, before, now, factor - 1, verdict)


def print_changes(changes: Sequence[Change], console: Console) -> None:
    """One line per operation, then which got slower."""
    heads = (
        "operation",
        "reference",
        "verdict",
        "time",
        "ratio",
        "spread",
        "baseline",
        "change",
        "tolerance",
    )
    Table(heads, [_cells(change) for change in changes], words=3).show(console)
    slower = [change for change in changes if change.verdict is Verdict.SLOWER]
    for change in slower:
        console.print(f"slower: {change.id} by {change.growth:.0%}", style="red", highlight=False)
    compared = sum(change.growth is not None for change in changes)
    if compared and not slower:
        console.print(f"none of {compared} operations got slower by more than its tolerance")


def _cells(change: Change) -> tuple[str, ...]:
    before, now = change.before, change.now
    row = now or before
    assert row is not None, "a change has at least one side"
    timed = ("", "", "")
    if now is not None:
        timed = (f"{now.seconds * 1e3:.3g} ms", f"{now.ratio:.4g}", f"{now.spread:.0%}")
    return (
        *(change.id, row.reference_id, change.verdict.value, *timed),
        "" if before is None else f"{before.ratio:.4g}",
        "" if change.growth is None else f"{change.growth:+.0%}",
        f"{row.noise.tolerance:.0%}",
    )


def _interpret() -> int:
    found = 0
    for number in range(20_000):
        found += number * number & 0xFF
    return found


INTERPRETER = Reference("interpreter", _interpret)
