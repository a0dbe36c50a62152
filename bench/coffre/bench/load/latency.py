"""Latencies as an HdrHistogram: constant memory, three significant digits, and sums over processes and seconds."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from coffre.cluster.errors import ConfigurationError, InvalidArgument

try:
    from hdrh.codec import HdrCookieException, HdrLengthException
    from hdrh.histogram import HdrHistogram
except ModuleNotFoundError:  # the other measurements do without it
    HdrHistogram = None

__all__ = ["Latencies", "check_installed", "total"]

LOWEST_US = 1
HIGHEST_US = 3600 * 1_000_000
SIGNIFICANT_DIGITS = 3


def check_installed() -> None:
    """Raise `ConfigurationError` when the library of histograms is not there."""
    if HdrHistogram is None:
        raise ConfigurationError("load needs the package hdrhistogram: pip install 'coffre[bench]'")


class Latencies:
    """Durations in seconds, from 1 µs to one hour; a longer one counts as an hour."""

    def __init__(self) -> None:
        """Raises `ConfigurationError` as `check_installed`."""
        check_installed()
        self._histogram = HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS)

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self._histogram.record_value(min(max(round(seconds * 1e6), LOWEST_US), HIGHEST_US))

    def add(self, other: Latencies) -> None:
        """Count everything that the other one has counted."""
        self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        return int(self._histogram.get_total_count())

    def percentiles(self, wanted: Sequence[float]) -> tuple[float, ...]:
        """Seconds at each of the percentiles (0 to 100), in their order.

        Raises `InvalidArgument` when nothing was counted.
        """
        if not self.count:
            raise InvalidArgument("nothing was counted, so there are no percentiles")
        first, counts = self._counts()
        sums = list(accumulate(counts))
        found = []
        for percentile in wanted:
            rank = max(1, round(percentile * self.count / 100 + 1e-9))
            found.append(self._seconds_at(first + bisect_left(sums, min(rank, self.count))))
        return tuple(found)

    def percentile(self, wanted: float) -> float:
        """Seconds at one percentile."""
        return self.percentiles([wanted])[0]

    @property
    def mean_s(self) -> float:
        """Mean in seconds, of the values as they are rounded here."""
        return sum(seconds * count for seconds, count in self.steps()) / self.count

    def steps(self) -> Iterator[tuple[float, int]]:
        """Every recorded value in seconds, ascending, with how often it was counted."""
        first, counts = self._counts()
        for index, count in enumerate(counts, first):
            if count:
                yield self._seconds_at(index), count

    def encode(self) -> str:
        """The standard compressed form of HdrHistogram (V2), in base64."""
        return bytes(self._histogram.encode()).decode("ascii")

    @classmethod
    def decode(cls, text: str) -> Latencies:
        """The opposite. Raises `InvalidArgument` when the text is none."""
        found = cls()
        try:
            found._histogram.decode_and_add(text.encode("ascii"))
        except (
            *(ValueError, IndexError, RuntimeError, OverflowError, MemoryError),
            *(zlib.error, HdrCookieException, HdrLengthException),
        ) as error:
            raise InvalidArgument(f"not an HdrHistogram: {type(error).__name__}") from None
        return found

    def _counts(self) -> tuple[int, list[int]]:
        """The counters from the least value to the greatest, and the index of the first of them.

        The library walks over all its counters in Python, one by one, for every question.
        """
        if not self.count:
            return 0, []
        first = self._histogram.get_counts_array_index(self._histogram.get_min_value())
        last = self._histogram.get_counts_array_index(self._histogram.get_max_value())
        return first, memoryview(self._histogram.counts).cast("B").cast("Q")[first : last + 1].tolist()

    def _seconds_at(self, index: int) -> float:
        value = self._histogram.get_value_from_index(index)
        return min(int(self._histogram.get_highest_equivalent_value(value)), HIGHEST_US) / 1e6


def total(parts: Iterable[Latencies]) -> Latencies:
    """The sum of many."""
    found = Latencies()
    for part in parts:
        found.add(part)
    return found
