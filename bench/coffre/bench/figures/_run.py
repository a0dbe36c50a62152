"""The groups of figures in the order of the table: cheap ones first, those that fill disks last."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from coffre.bench.figures import _coding, _faults, _index, _large, _listing, _memory, _records, _small
from coffre.bench.figures._session import FigureOptions, Figures, Group, Session
from coffre.bench.result import Target
from coffre.cluster.clock import Clock
from rich.console import Console

__all__ = ["TARGETS", "measure_figures"]

_GROUPS: tuple[Group, ...] = (
    _coding.ENCODE,
    _coding.PIPELINE,
    _small.SMALL,
    _records.RECORDS,
    _large.LARGE,
    _faults.FAULTS,
    _memory.MEMORY,
    _records.SPACE,
    _listing.LISTING,
    _index.INDEX,
)

TARGETS: Mapping[str, Target] = MappingProxyType(
    {name: target for group in _GROUPS for name, target in group.targets.items()}
)
"""What has to be reached, by figure, in the order of the table."""


async def measure_figures(options: FigureOptions, clock: Clock, console: Console) -> Figures:
    """Measure what the options ask for, one figure after the other. One that fails does not keep the others away.

    The clusters are gone when this returns, with all that they stored. A directory that holds something else is left
    alone, and its figures are failures.
    """
    session = Session(options, clock, console, Figures())
    for group in _GROUPS:
        if wanted := options.wants(*group.targets):
            start = clock.monotonic()
            with session.recorded(wanted):
                await group.measure(session, wanted)
            session.say(f"  took {clock.monotonic() - start:.0f} s")
    return session.figures
