"""`make bench` and `make bench-repair`: every published figure, each beside its reference and its target.

One module per group of figures; here is their order: cheap ones first, those that fill disks last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from coffre.bench.figures import _coding, _data_path, _nodes, _repair
from coffre.bench.figures._session import FULL, QUICK, FigureOptions, Figures, Group, Scale, Session
from coffre.bench.result import Target
from coffre.cluster.clock import Clock
from rich.console import Console

__all__ = [
    "FIGURES",
    "FULL",
    "QUICK",
    "REPAIR",
    "FigureOptions",
    "Figures",
    "Group",
    "Scale",
    "measure_figures",
    "targets_of",
]

FIGURES: tuple[Group, ...] = (
    *(_coding.ENCODE, _coding.PIPELINE),
    *(_data_path.SMALL, _data_path.RECORDS, _data_path.LARGE),
    *(_nodes.FAULTS, _nodes.MEMORY),
    *(_data_path.SPACE, _data_path.LISTING),
    _nodes.INDEX,
)
REPAIR: tuple[Group, ...] = (_repair.LARGE, _repair.SMALL, _repair.GETS, _repair.JOIN, _repair.IDLE)


def targets_of(groups: Sequence[Group]) -> Mapping[str, Target | None]:
    """What has to be reached, by figure, in the order of the table; None where nothing has to be."""
    return {figure.id: figure.target for group in groups for figure in group.figures}


async def measure_figures(
    options: FigureOptions, clock: Clock, console: Console, groups: Sequence[Group] = FIGURES
) -> Figures:
    """Measure what the options ask for, one figure after the other. One that fails does not keep the others away.

    The clusters are gone when this returns, with all that they stored. A directory that holds something else is left
    alone, and its figures are failures.
    """
    asked = {each.name: getattr(options, each.name) for each in fields(options)}
    session = Session(**asked, clock=clock, console=console, figures=Figures())
    for group in groups:
        if session.wants(*group.figures):
            start = clock.monotonic()
            with session.recorded(*group.figures):
                await group.measure(session)
            session.say(f"  took {clock.monotonic() - start:.0f} s")
    return session.figures
