"""What a client process has written itself, and what must therefore be there at the end: one byte per object."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum

from coffre.cluster.errors import ResourceExhausted

__all__ = ["Fate", "Ledger"]

OBJECTS_MAX = 1 << 26


class Fate(IntEnum):
    """What is known of an object."""

    UNKNOWN = 0  # under way, or nobody could say whether it stands: whole, or not there
    ACKNOWLEDGED = 1  # must be there
    REFUSED = 2  # `Unavailable`: must not be there
    DELETED = 3  # must not be there any more


class Ledger:
    """The objects of one process, numbered as they are put. Each is put once, and deleted at most once."""

    def __init__(self) -> None:
        self._fates = bytearray()
        self._deletable: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._fates)

    def begin(self) -> int:
        """The number of a new object. Raises `ResourceExhausted` after 2^26 of them."""
        if len(self._fates) == OBJECTS_MAX:
            raise ResourceExhausted(
                f"a client process keeps account of {OBJECTS_MAX} objects, and of no more"
            )
        self._fates.append(Fate.UNKNOWN)
        return len(self._fates) - 1

    def settle(self, number: int, fate: Fate) -> None:
        """Note what became of it."""
        self._fates[number] = fate
        if fate is Fate.ACKNOWLEDGED:
            self._deletable.append(number)

    def take_oldest(self) -> int | None:
        """An acknowledged object to delete, which nobody else gets; None when there is none."""
        if not self._deletable:
            return None
        number = self._deletable.popleft()
        self._fates[number] = Fate.UNKNOWN
        return number

    def fates(self) -> Iterator[tuple[int, Fate]]:
        """Every object with its fate."""
        for number, fate in enumerate(self._fates):
            yield number, Fate(fate)
