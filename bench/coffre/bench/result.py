"""Results: rows and their references, measured in turns, written as JSON and shown as a table."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from coffre.bench.typed_json import decoded, plain
from coffre.cluster.errors import ConfigurationError, InvalidArgument
from coffre.cluster.version import __version__
from coffre.dev.files import write_whole
from coffre.dev.tables import Table
from rich.console import Console

__all__ = [
    "Bound",
    "Figure",
    "Machine",
    "Measurement",
    "Quantity",
    "Row",
    "Target",
    "machine",
    "one_line",
    "print_table",
    "read_results",
    "row_of",
    "take_turns",
    "write_results",
]

_P = TypeVar("_P")
_R = TypeVar("_R")


class Bound(Enum):
    """Which side of the limit is good."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


class Quantity(Enum):
    """What of a row a target is about."""

    RATIO = auto()
    VALUE = auto()


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one turn of a reference found: `value` in `unit`, and in `detail` the conditions."""

    id: str
    value: float
    unit: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One published figure beside its reference. `ratio` is value / reference."""

    id: str
    value: float
    unit: str
    reference: float
    reference_id: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Target:
    """What a row has to reach. With `also`, it has to reach that as well."""

    bound: Bound
    limit: float
    quantity: Quantity = Quantity.RATIO
    also: Target | None = None

    def reached(self, row: Row) -> bool:
        """Whether the row is on the good side of the limit."""
        found = row.ratio if self.quantity is Quantity.RATIO else row.value
        reached = found >= self.limit if self.bound is Bound.AT_LEAST else found <= self.limit
        return reached and (self.also is None or self.also.reached(row))

    def __str__(self) -> str:
        what = "ratio " if self.quantity is Quantity.RATIO else ""
        wording = f"{what}{self.bound.value} {_number(self.limit)}"
        return wording if self.also is None else f"{wording}, and {self.also}"


@dataclass(frozen=True, slots=True)
class Figure:
    """What is published: its name, its unit, and what it has to reach, if anything."""

    id: str
    unit: str
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures come from, without saying whose machine it is."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    filesystem: str

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_bytes / 1e9:.0f} GB, kernel {self.kernel}, "
            f"Python {self.python}, {self.filesystem}"
        )


async def take_turns(
    product: Callable[[], Awaitable[_P]], reference: Callable[[], Awaitable[_R]], *, rounds: int
) -> list[tuple[_P, _R]]:
    """Measure both in turns (reference, product, product, reference, ...); the two halves of each round.

    Either may be more than one value, such as one product beside two references.
    """
    if rounds < 1:
        raise InvalidArgument("at least one round")
    found: list[tuple[_P, _R]] = []
    for number in range(rounds):
        if number % 2 == 0:
            beside = await reference()
            found.append((await product(), beside))
        else:
            measured = await product()
            found.append((measured, await reference()))
    return found


def row_of(figure: Figure, *rounds: tuple[float, Measurement]) -> Row:
    """The row of rounds of (product, reference): medians over the rounds.

    The ratio is the median of the ratios of each round, whose two halves are seconds apart; it is therefore
    not exactly the quotient of the two medians beside it.
    """
    return Row(
        id=figure.id,
        value=statistics.median(found for found, _ in rounds),
        unit=figure.unit,
        reference=statistics.median(beside.value for _, beside in rounds),
        reference_id=rounds[0][1].id,
        ratio=statistics.median(found / beside.value for found, beside in rounds),
    )


def machine(directory: Path) -> Machine:
    """This machine, with the type of the filesystem that `directory` is on. Linux only."""
    text = Path("/proc/cpuinfo").read_text()
    return Machine(
        cpu=found[1] if (found := re.search(r"^model name\s*: (.+)$", text, re.M)) else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
        filesystem=_filesystem(Path("/proc/self/mountinfo").read_text(), directory.resolve()),
    )


@dataclass(frozen=True, slots=True)
class _Results:
    """What a file of results holds."""

    machine: Machine
    version: str
    seed: int
    time: datetime
    rows: tuple[Row, ...]


def write_results(path: Path, rows: Sequence[Row], *, seed: int, directory: Path) -> str:
    """Write a run as JSON, all or nothing, and return the SHA-256 (hex) of its rows.

    `directory` is where the disk was measured. Raises `InvalidArgument` for a figure that is not finite or an id that
    occurs twice.
    """
    for row in rows:
        if not all(map(math.isfinite, (row.value, row.reference, row.ratio))):
            raise InvalidArgument(f"row {row.id} is not finite")
    if len({row.id for row in rows}) != len(rows):
        raise InvalidArgument("two rows have the same id")
    now = datetime.now(UTC).replace(microsecond=0)
    content = plain(_Results(machine(directory), __version__, seed, now, tuple(rows)))
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return sha256(json.dumps(content["rows"], sort_keys=True).encode()).hexdigest()


def read_results(path: Path) -> tuple[Machine, tuple[Row, ...]]:
    """The machine and the rows of such a file. Raises `ConfigurationError` when it is none."""
    try:
        found = decoded(_Results, json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, InvalidArgument) as error:
        raise ConfigurationError(f"{path} holds no results: {error}") from None
    return found.machine, found.rows


def print_table(rows: Iterable[Row], targets: Mapping[str, Target], console: Console) -> None:
    """Show each row with its target, by id; a target without a row is shown as not measured."""
    shown, left = [], dict(targets)
    for row in rows:
        target = left.pop(row.id, None)
        shown.append(
            (
                *(row.id, _number(row.value), row.unit, _number(row.reference), row.reference_id),
                f"{row.ratio:.3f}",
                *(("", "") if target is None else (str(target), "yes" if target.reached(row) else "NO")),
            )
        )
    shown += [
        (name, "not measured", "", "", "", "", str(target), "NO") for name, target in sorted(left.items())
    ]
    heads = ("figure", "value", "unit", "reference", "of", "ratio", "target", "reached")
    Table(heads, shown).show(console)


def one_line(row: Row) -> str:
    """A row as a line of progress."""
    return f"{row.id} {_number(row.value)} {row.unit}, {row.ratio:.3f} of {row.reference_id}"


def _number(value: float) -> str:
    """Four significant digits with an SI prefix: 12.34k, 56.78µ."""
    if value == 0 or 0.1 <= abs(value) < 10_000:
        return f"{value:.4g}"
    power = min(max(math.floor(math.log10(abs(value)) / 3), -3), 4)
    return f"{value / 1000.0**power:.4g}{'nµm kMGT'[power + 3].strip()}"


def _filesystem(mountinfo: str, directory: Path) -> str:
    """Type of the mount that `directory` is below; format of `mountinfo` from proc_pid_mountinfo(5)."""
    best, kind = -1, "unknown"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        where = Path(before.split()[4].encode().decode("unicode_escape"))
        # Of mounts on one path the last one listed is on top.
        if directory.is_relative_to(where) and len(where.parts) >= best:
            best, kind = len(where.parts), after.split()[0]
    return kind
