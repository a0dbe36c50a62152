"""What members make of each other: who is late, down, or wrong about others, and how nodes say they are.

It judges and never acts.
May import: identity, map, transport.
"""

from coffre.cluster.health.detection import Health, HealthLimits, HealthTracker
from coffre.cluster.health.doctor import Level, NodeReport, examine
from coffre.cluster.health.node_survey import SurveyedNode, live_bytes, present_nodes, survey_nodes
from coffre.cluster.health.witnesses import Testimony, testimonies

__all__ = [
    "Health",
    "HealthLimits",
    "HealthTracker",
    "Level",
    "NodeReport",
    "SurveyedNode",
    "Testimony",
    "examine",
    "live_bytes",
    "present_nodes",
    "survey_nodes",
    "testimonies",
]
