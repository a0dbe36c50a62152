"""What happened in a run, in order: every message, commit, fault and outcome, with a digest over all of it."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

__all__ = ["Journal", "fingerprint"]

Entry = tuple[float, tuple[object, ...]]


def fingerprint(raw: bytes) -> str:
    """A short name for bytes that are too long to write down."""
    return blake2b(raw, digest_size=8).hexdigest()


class Journal:
    """Entries of plain values alone, so that two equal runs have equal digests."""

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self._hash = blake2b(digest_size=16)
        self.entries: list[Entry] = []

    def note(self, *what: object) -> None:
        entry = (self._time(), what)
        self.entries.append(entry)
        self._hash.update(repr(entry).encode())

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def lines(self, wanted: Callable[[tuple[object, ...]], bool], until: float) -> list[str]:
        """The wanted entries up to a time, one a line, with their virtual time."""
        return [
            f"{time:10.4f} s  {' '.join(map(str, what))}"
            for time, what in self.entries
            if time <= until and wanted(what)
        ]
