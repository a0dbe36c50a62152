"""How the map changes: the first one, the next one, what moves, and how it is published and found.

It decides which change is allowed, and when it has been carried out.
May import: identity, map, transport, coordination, health.
"""

from coffre.cluster.membership.changes import (
    FileMapPublisher,
    MapPublisher,
    MapSigner,
    MoveProgress,
    ask_reports,
    begin_change,
    follow_move,
    progress_of,
)
from coffre.cluster.membership.formation import (
    OFFERED_PARTITIONS,
    NodeOffer,
    PolicyReport,
    form_map,
    offered_attributes,
    parse_capacity,
    parse_policy,
    survey,
)
from coffre.cluster.membership.handover import LostCoordinationPublisher, check_one_store, check_stores
from coffre.cluster.membership.map_source import (
    ClusterMaps,
    KeptMaps,
    VerifiedMap,
    keep_map,
    keep_where_allowed,
    learn_map,
    newest_of_nodes,
)
from coffre.cluster.membership.moves import (
    Move,
    Movement,
    MoveReport,
    MoveReports,
    RepairReports,
    movement_between,
)
from coffre.cluster.membership.next_map import (
    add_node,
    drain_node,
    find_node,
    remove_node,
    renew_node,
    replace_node,
    set_capacity,
    set_coordinators,
    set_policy,
)
from coffre.cluster.membership.publishing import CoordinatedMapPublisher, Restored, restore_newest_map

__all__ = [
    "OFFERED_PARTITIONS",
    "ClusterMaps",
    "CoordinatedMapPublisher",
    "FileMapPublisher",
    "KeptMaps",
    "LostCoordinationPublisher",
    "MapPublisher",
    "MapSigner",
    "Move",
    "MoveProgress",
    "MoveReport",
    "MoveReports",
    "Movement",
    "NodeOffer",
    "PolicyReport",
    "RepairReports",
    "Restored",
    "VerifiedMap",
    "add_node",
    "ask_reports",
    "begin_change",
    "check_one_store",
    "check_stores",
    "drain_node",
    "find_node",
    "follow_move",
    "form_map",
    "keep_map",
    "keep_where_allowed",
    "learn_map",
    "movement_between",
    "newest_of_nodes",
    "offered_attributes",
    "parse_capacity",
    "parse_policy",
    "progress_of",
    "remove_node",
    "renew_node",
    "replace_node",
    "restore_newest_map",
    "set_capacity",
    "set_coordinators",
    "set_policy",
    "survey",
]
