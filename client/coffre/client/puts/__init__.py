"""Whole puts: conditions, the way of one version's data, and coding anew (docs/recoding.md).

It decides in which order a put reads, locks, sends and establishes.
May import: sealing, nodes, writing, reading.
"""

from coffre.client.puts._conditions import ConditionalWriter, condition_of
from coffre.client.puts._puts import Putter
from coffre.client.puts._recoding import Recoder

__all__ = [
    "ConditionalWriter",
    "Putter",
    "Recoder",
    "condition_of",
]
