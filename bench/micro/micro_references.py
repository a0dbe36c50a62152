"""What every micro benchmark shares: how it runs beside a reference, and the commonest reference."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from coffre.bench.micro import MicroRow, Noise, row_from_rounds
from pytest_benchmark.fixture import BenchmarkFixture

__all__ = ["INTERPRETER", "Beside", "Noise", "Reference"]

ROUNDS = 61  # of a millisecond or so: short enough that some of them are left alone on a busy machine


@dataclass(frozen=True, slots=True)
class Reference:
    """Work that is none of Coffre's, of a fixed size: a millisecond or a few."""

    id: str
    run: Callable[[], object]


class Beside:
    """Times an operation right after its reference, round by round, through pytest-benchmark."""

    def __init__(self, benchmark: BenchmarkFixture, name: str, rows: list[MicroRow]) -> None:
        self._benchmark, self._name, self._rows = benchmark, name, rows

    def __call__(
        self,
        reference: Reference,
        operation: Callable[[], object],
        *,
        noise: Noise = Noise.CPU,
        rounds: int = ROUNDS,
    ) -> None:
        durations: list[float] = []

        def time_reference() -> None:
            start = time.perf_counter()
            reference.run()
            durations.append(time.perf_counter() - start)

        reference.run()
        operation()
        self._benchmark.pedantic(operation, setup=time_reference, rounds=rounds)  # type: ignore[no-untyped-call]
        recorded = self._benchmark.stats
        if recorded is None:
            return  # with --benchmark-disable
        timed = recorded.stats.data
        row = row_from_rounds(self._name, reference.id, noise, timed, durations[: len(timed)])
        self._benchmark.extra_info.update(reference=reference.id, ratio=row.ratio)
        self._rows.append(row)


def _interpret() -> int:
    found = 0
    for number in range(20_000):
        found += number * number & 0xFF
    return found


INTERPRETER = Reference("interpreter", _interpret)
