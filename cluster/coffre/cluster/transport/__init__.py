"""How a member talks to a node: the seam, gRPC over mutual TLS, and the exchange of batches.

It decides how a call travels and which error it ends with.
May import: identity, map.
"""

from coffre.cluster.transport.exchange import Batch
from coffre.cluster.transport.grpc_transport import GrpcTransport
from coffre.cluster.transport.process import OwnProcess
from coffre.cluster.transport.ranges import Piece, part_bytes, pieces_of_range
from coffre.cluster.transport.seam import LoopbackTransport, NodeHandler, Transport

__all__ = [
    "Batch",
    "GrpcTransport",
    "LoopbackTransport",
    "NodeHandler",
    "OwnProcess",
    "Piece",
    "Transport",
    "part_bytes",
    "pieces_of_range",
]
