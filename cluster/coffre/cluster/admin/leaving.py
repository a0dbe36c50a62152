"""Nodes that leave: what a drained one still holds, and how long `remove` has to wait."""

from __future__ import annotations

from collections.abc import Callable

from coffre.cluster.admin.access import Access
from coffre.cluster.errors import PolicyViolation, RetryableError
from coffre.cluster.health import SurveyedNode
from coffre.cluster.map import ClusterMap, NodeState
from coffre.cluster.membership import find_node

__all__ = ["await_empty", "holding_line", "may_be_removed"]

POLL_SECONDS = 2.0


async def holding_line(access: Access, node_id: str) -> str:
    """What a drained node still holds, for people; empty when that is nothing."""
    node = find_node(await access.publisher.current(), node_id)
    if node.state is NodeState.REMOVED:
        return ""
    [report] = await access.survey_of((node,))
    if report.status is None:
        return f"{node_id} does not answer"
    held = report.status.shards
    return f"{node_id} still holds {held} shards for others, and hands them over in time" if held else ""


async def await_empty(access: Access, node_id: str, say: Callable[[str], None]) -> None:
    """Return once a drained node says that it holds nothing, or was removed. `say` hears what it still holds.

    Raises `PolicyViolation` when it is in use, or taken into use again.
    """
    said = ""
    while True:
        try:
            node = find_node(await access.publisher.current(), node_id)
            if node.state is NodeState.ACTIVE:
                raise PolicyViolation(f"{node_id} is in use; drain it first (coffre cluster drain)")
            line = await holding_line(access, node_id)
        except RetryableError as error:
            line = str(error)
        if not line:
            return
        if line != said:
            say(line)
        said = line
        await access.clock.sleep(POLL_SECONDS)


def may_be_removed(current: ClusterMap, report: SurveyedNode) -> str:
    """For a table: whether `remove` would take a node out now; a dash for one that is in use."""
    if report.node.state is not NodeState.DRAINING:
        return "-"
    if current.prior:
        return "no, data moves"
    if report.status is None:
        return "?"
    return f"no, holds {report.status.shards}" if report.status.shards else "yes"
