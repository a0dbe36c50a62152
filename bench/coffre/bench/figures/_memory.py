"""Figures of memory: what a client and the nodes have to themselves while one large object goes in and comes out."""

from __future__ import annotations

from collections.abc import Sequence

from coffre.bench._memory import measure_memory
from coffre.bench.figures._session import Group, Session
from coffre.bench.references import Measurement
from coffre.bench.result import Bound, Target, row_of

__all__ = ["MEMORY"]

_CLIENT, _NODE = "client_memory_1g", "node_memory_1g"
_BOUNDS_MB = {_CLIENT: 150.0, _NODE: 200.0}


async def _measure(session: Session, wanted: Sequence[str]) -> None:
    """On nodes that served nothing before, so that the figure does not depend on the other rows."""
    session.say(f"measuring {' and '.join(wanted)}")
    async with session.cluster() as cluster:
        pids = {number: cluster.pid(number) for number in cluster.numbers}
        peaks = await measure_memory(
            cluster.client_config(), pids, size_bytes=session.scale.memory_bytes, seed=session.seed
        )
    values = {_CLIENT: peaks.client_bytes, _NODE: peaks.highest_node_bytes}
    session.add(
        *[
            row_of(
                Measurement(name, values[name] / 1e6, "MB", "peak of anonymous memory"),
                Measurement("bound", _BOUNDS_MB[name], "MB", "what it may be at most"),
            )
            for name in wanted
        ]
    )


MEMORY = Group({_CLIENT: Target(Bound.AT_MOST, 1.0), _NODE: Target(Bound.AT_MOST, 1.0)}, _measure)
