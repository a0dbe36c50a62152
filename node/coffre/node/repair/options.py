"""What an administrator may tell the repair of one node: the section [repair] of node.toml."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RETENTION_SECONDS_MIN", "UNFINISHED_SECONDS_MIN", "RepairOptions"]

RETENTION_SECONDS_MIN = 3600  # well above the age of a message that a node still takes
UNFINISHED_SECONDS_MIN = 3600  # docs/consistency.md, "An acknowledgement survives", counts on it


@dataclass(slots=True)
class RepairOptions:
    """Times in seconds."""

    paused: bool = False  # begin paused
    bytes_per_second: int = (
        64 << 20
    )  # read from others and written, together; an object is OBJECT_BYTES at least
    round_seconds: float = 30.0  # between two comparisons with the other primaries
    settling_seconds: float = 5.0  # what is younger may still be on its way here
    # How old a version is before anybody but its writer decides about it: well above the age of one that a node still
    # takes (`serving.times.STAMP_AGE_MS_MAX`), so that no Accept of it is on its way any more.
    unfinished_seconds: float = 3600.0
    retention_seconds: float = 24 * 3600.0  # how long a tombstone stays at least
    sweep_seconds: float = 6 * 3600.0  # one walk over the own rows: tombstones, unfinished versions, hand-off
    scrub_seconds: float = 30 * 24 * 3600.0  # one reading of everything that is stored
    timeout: float = 10.0  # of one answer of another node
