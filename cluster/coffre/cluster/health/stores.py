"""Whether the coordinators that a map names serve coordination, and one store. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping

from coffre.cluster.health.findings import Finding, Level, see_run_book
from coffre.cluster.map import ClusterMap
from coffre.proto import coffre_pb2 as pb

__all__ = ["of_coordination", "rival_stores"]

_REFUSED = "conditional writes, buckets, suspensions and changes of the map are refused"


def rival_stores(cluster_map: ClusterMap, statuses: Mapping[int, pb.StatusReply]) -> str:
    """What is wrong when the coordinators of a map have more than one store between them, else nothing.

    `statuses`: what nodes answered, by number. One store of its own is too many where the map names several
    coordinators, whether the others answer or not.
    """
    stores: dict[tuple[int, int], list[str]] = {}
    for number in cluster_map.coordinators:
        if number not in statuses:
            continue
        served = statuses[number].coordination
        if served.kind == pb.COORDINATION_KIND_EMBEDDED:
            stores.setdefault((served.kind, number), []).append(cluster_map.node(number).node_id)
        elif served.kind == pb.COORDINATION_KIND_ETCD and served.etcd_cluster:
            stores.setdefault((served.kind, served.etcd_cluster), []).append(cluster_map.node(number).node_id)
    own = [nodes[0] for (kind, _), nodes in stores.items() if kind == pb.COORDINATION_KIND_EMBEDDED]
    if len(cluster_map.coordinators) < 2 or (len(stores) < 2 and not own):
        return ""
    if own:
        each = (
            "has a coordination store of its own"
            if len(own) == 1
            else "each have a coordination store of their own"
        )
        what = f"{', '.join(own)} {each} (embedded)"
    else:
        what = "there are two etcds: " + " and ".join(
            f"that of {', '.join(nodes)}" for nodes in stores.values()
        )
    named = ", ".join(cluster_map.node(number).node_id for number in cluster_map.coordinators)
    return (
        f"{what}, and the map names {named}: what one store decides, the members at another never hear of. "
        'Let all of them share one etcd (kind = "etcd" in node.toml), or name one node alone: '
        f"coffre cluster set-coordinators {(own or [cluster_map.node(cluster_map.coordinators[0]).node_id])[0]}"
    )


def of_coordination(cluster_map: ClusterMap, statuses: Mapping[int, pb.StatusReply]) -> list[Finding]:
    """What stands in the way of agreement. Nothing where the map names no coordinators: then none is wanted."""
    if not cluster_map.coordinators:
        return []
    if rivals := rival_stores(cluster_map, statuses):
        text = rivals + see_run_book("Two nodes have a coordination store each")
        return [Finding(Level.ERROR, "coordination", text)]
    troubles = {number: _trouble(statuses.get(number)) for number in cluster_map.coordinators}
    is_served = not all(troubles.values())
    findings = [
        Finding(Level.WARNING if is_served else Level.ERROR, cluster_map.node(number).node_id, trouble)
        for number, trouble in troubles.items()
        if trouble
        and number in statuses
        and not statuses[number].coordination_failure  # said of the node already
    ]
    if not is_served:
        named = ", ".join(cluster_map.node(number).node_id for number in cluster_map.coordinators)
        text = f"nobody serves it (the map names {named}): {_REFUSED}. Plain reads and writes go on"
        text += see_run_book("Coordination cannot be reached")
        findings.append(Finding(Level.ERROR, "coordination", text))
    return findings


def _trouble(status: pb.StatusReply | None) -> str:
    """Why a coordinator serves no coordination now; nothing when it does, or does not say."""
    if status is None:
        return "it does not answer"
    if not status.HasField("coordination"):
        return ""
    if status.coordination.kind == pb.COORDINATION_KIND_NONE:
        return (
            "the map names it as a coordinator, and its node.toml has no [coordination]: give it the section and start "
            "it again, or let others serve (coffre cluster set-coordinators)"
        )
    return (
        status.coordination.trouble
        and f"its coordination store is not at hand: {status.coordination.trouble}"
    )
