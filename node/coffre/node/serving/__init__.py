"""What a node answers: requests checked and carried out, and the coordination that it serves or uses.

It decides who may ask for what.
May import: store, following, repair.
"""

from coffre.node.serving.handler import Handler
from coffre.node.serving.membership import Membership
from coffre.node.serving.servicer import COORDINATION, SERVICE, CoordinationServicer, Servicer, add_servicer
from coffre.node.serving.vital_signs import VitalSigns

__all__ = [
    "COORDINATION",
    "SERVICE",
    "CoordinationServicer",
    "Handler",
    "Membership",
    "Servicer",
    "VitalSigns",
    "add_servicer",
]
