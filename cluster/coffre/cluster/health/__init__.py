"""What members make of each other: who is late, down, or wrong about others, and how nodes say they are.

It judges and never acts.
May import: identity, map, transport.
"""

from coffre.cluster.health.detection import Health, HealthLimits, HealthTracker
from coffre.cluster.health.doctor import NodeReport, OwnFiles, examine
from coffre.cluster.health.findings import Finding, Level
from coffre.cluster.health.node_survey import SurveyedNode, live_bytes, present_nodes, survey_nodes
from coffre.cluster.health.stores import rival_stores
from coffre.cluster.health.witnesses import Testimony, testimonies

__all__ = [
    "Finding",
    "Health",
    "HealthLimits",
    "HealthTracker",
    "Level",
    "NodeReport",
    "OwnFiles",
    "SurveyedNode",
    "Testimony",
    "examine",
    "live_bytes",
    "present_nodes",
    "rival_stores",
    "survey_nodes",
    "testimonies",
]
